"""Fields of data that may be anybody's: every number with its range, every text with its length, so that who reads them
need not look.
"""

from typing import Annotated, Any

from pydantic import AfterValidator, Field

MOST_LETTERS = 10_000  # of a text: the longest are recipes and sentences
LARGEST = 3.5e38  # beyond float32, in which programs compute

Text = Annotated[str, Field(max_length=MOST_LETTERS)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Fraction = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Gap = Annotated[float, Field(ge=0, le=LARGEST)]  # between two logits
Distance = Annotated[float, Field(ge=0, le=1e9)]  # of two images, in any norm
Seconds = Annotated[float, Field(ge=0, le=1e12)]
Likeness = Annotated[float, Field(ge=-1.001, le=1.001)]  # of two maps, with what it was rounded by
End = Annotated[
    float, Field(ge=-20, le=20)
]  # of the interval of such a mean, which of two images reaches 12.7 beyond it
Count = Annotated[int, Field(ge=0, le=2**53)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63)]
Side = Annotated[int, Field(ge=1, le=2**16)]  # of an image
Asked = Annotated[int, Field(ge=1, le=1000)]  # passes of a request, or queries of a client that a server holds


def plain(said: Any) -> Any:
    """What is passed on as it stands. Raises ValueError for a text in it that is too long, or a number that is none."""
    waiting = [said]
    while waiting:
        match waiting.pop():
            case dict() as some:
                waiting += [*some, *some.values()]
            case list() | tuple() as some:
                waiting += some
            case str() as text if len(text) > MOST_LETTERS:
                raise ValueError(f"a text in it should have at most {MOST_LETTERS} characters")
            case int() | float() as number if not abs(number) <= LARGEST:  # NaN too
                raise ValueError("a number in it should be finite, as those of float32")
    return said


Said = Annotated[dict[str, Any], AfterValidator(plain)]
