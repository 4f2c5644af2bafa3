"""The citation of robustq, from CITATION.cff, which lies beside the code."""

from pathlib import Path

import yaml

PLACE = Path(__file__).parents[2] / "CITATION.cff"


def citation(place: Path = PLACE) -> str:
    """The request of the file, and an entry for BibTeX."""
    known = yaml.safe_load(place.read_text(encoding="utf-8"))
    authors = " and ".join(f"{{{author['name']}}}" for author in known["authors"])
    fields = {
        "author": f"{{{authors}}}",
        "title": f"{{{{{known['title']}}}: {' '.join(known['abstract'].split()).partition(':')[0]}}}",
        "version": f"{{{known['version']}}}",
        "year": f"{{{str(known['date-released'])[:4]}}}",
        "license": f"{{{known['license']}}}",
    }
    entry = "\n".join(f"  {name:<8}= {value}," for name, value in fields.items())
    return f"{known['message']}\n\n@software{{robustq,\n{entry}\n}}"
