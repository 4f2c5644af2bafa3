"""Types of files that are no picture, told by their first bytes."""

from pathlib import Path

from robustlib.number_text import counted

Encoded = bytes | Path | None  # a picture's bytes, or the file with them alone; None where there is none

LOOKED_AT = 1024
KNOWN = {
    b"version https://git-lfs": "a Git LFS pointer: fetch the file itself with `git lfs pull`",
    b"\x00\x05\x16\x07": "macOS metadata (a `._` file), which belongs to no data set",
    b"%!PS": "a PostScript drawing",
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzipped file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"PAR1": "a Parquet file",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file",
    b"\x1aE\xdf\xa3": "a Matroska or WebM video",
    b"OggS": "an Ogg video",
    b"FLV": "a Flash video",
    b"\x00\x00\x01\xba": "an MPEG video",
    b"\x00\x00\x01\xb3": "an MPEG video",
    b"8BPS": "a Photoshop file",
    b"\x76\x2f\x31\x01": "an OpenEXR picture: save it as PNG or JPEG",
    b"\xff\x0a": "a JPEG XL picture: save it as PNG or JPEG",
    b"\x00\x00\x00\x0cJXL ": "a JPEG XL picture: save it as PNG or JPEG",
}
# Picture formats that are read: what begins so and is still none is broken.
BROKEN = {
    b"\x89PNG": "PNG",
    b"\xff\xd8": "JPEG",
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"BM": "BMP",
    b"\x00\x00\x00\x0cjP  ": "JPEG 2000",
    b"P5\n": "PGM",
    b"P6\n": "PPM",
}
MARKUP = {b"<svg": "an SVG drawing", b"<!doctype html": "an HTML page", b"<html": "an HTML page", b"<?xml": "XML"}


def describe_bytes(data: Encoded) -> str:
    """What it seems to be, in words."""
    if data is None:
        return "null"
    if isinstance(data, Path):
        size = data.stat().st_size
        with data.open("rb") as file:
            data = file.read(LOOKED_AT)
    else:
        size = len(data)
    if not size:
        return "nothing"
    begins = data[:LOOKED_AT].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if named := container_type(data) or next((said for sign, said in KNOWN.items() if data.startswith(sign)), None):
        return named
    if begins.startswith(b"<") and (named := next((said for sign, said in MARKUP.items() if sign in begins), None)):
        return named
    if kind := next((kind for sign, kind in BROKEN.items() if data.startswith(sign)), None):
        return f"a {kind} that is cut off or damaged"
    if not any(data):
        return f"{counted(size, 'byte that begins', 'bytes that begin')} with zeros alone"
    return f"{counted(size, 'byte')} of something else, beginning with {data[:8]!r}"


def container_type(data: bytes) -> str | None:
    """The container formats that name their content after some bytes."""
    if data[4:8] == b"ftyp":
        brand = data[8:12]
        if brand in (b"heic", b"heix", b"mif1", b"heif", b"hevc", b"msf1"):
            return "a HEIC photo: save it as PNG or JPEG"
        return "an AVIF that is cut off or damaged" if brand in (b"avif", b"avis") else "a video (MP4 or MOV)"
    if data[:4] == b"RIFF":
        return {b"AVI ": "a video (AVI)", b"WEBP": "a WebP that is cut off or damaged"}.get(data[8:12], "a RIFF file")
    return "a DICOM file: save it as PNG" if data[128:132] == b"DICM" else None
