"""Numbers as fields of studies and specs: how they are read, and the ranges of the kernels' table."""

from typing import Annotated, Any

from pydantic import AfterValidator, AllowInfNan, BeforeValidator, ValidationInfo

from robustlib.arguments import RANGES, Range, check_range
from robustq.jobs.text.number_parsing import radius, real, whole


def in_range(known: Range | None = None) -> AfterValidator:
    """A field's numbers, as the kernels take them. known: where their table has no range for the field's name, or means
    something else by it.
    """

    def check(value: Any, info: ValidationInfo) -> Any:
        name = str(info.field_name)
        check_range("", name, value, RANGES[name] if known is None else known)
        return value

    return AfterValidator(check)


Number = Annotated[float, AllowInfNan(False), BeforeValidator(real)]
Whole = Annotated[int, BeforeValidator(whole)]
Radius = Annotated[float, BeforeValidator(radius)]
