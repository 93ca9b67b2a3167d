"""Take the bytes of one section out of an ELF library without moving anything in memory.

A section that is not loaded (`.symtab`) is simply cut out. The pages of one that is stay in the address space as
zeroes: the segment that holds it is split in two, and the part in the middle has no bytes in the file. Everything later
in the file moves down by whole pages, so that file offsets and addresses stay congruent, as the loader demands.
binutils' strip is not used: it lays out the file anew, which breaks libraries that patchelf has been at.
"""

import struct
from dataclasses import dataclass, replace
from pathlib import Path

PAGE = 0x1000
PT_LOAD, PT_NOTE, PF_W = 1, 4, 2
SHT_NULL, SHT_NOBITS, SHF_ALLOC = 0, 8, 2
HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
SEGMENT = struct.Struct("<IIQQQQQQ")
SECTION = struct.Struct("<IIQQQQIIQQ")


@dataclass(frozen=True)
class Segment:
    """A program header; field names as in the ELF specification."""

    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int


def drop_section(path: Path, section: str) -> int:
    """Remove a section's whole pages from the file; the bytes saved.

    A loaded section needs a PT_NOTE segment, whose place the new segment takes.

    Raises SystemExit when the file is laid out in another way than this can handle.
    """
    data = path.read_bytes()
    head = list(HEADER.unpack_from(data))
    if data[:6] != b"\x7fELF\x02\x01":
        raise SystemExit(f"{path.name}: not a 64-bit little-endian ELF file")
    phoff, shoff, phnum, shnum, shstrndx = head[5], head[6], head[10], head[12], head[13]
    segments = [Segment(*SEGMENT.unpack_from(data, phoff + i * SEGMENT.size)) for i in range(phnum)]
    sections = [list(SECTION.unpack_from(data, shoff + i * SECTION.size)) for i in range(shnum)]
    names_at = sections[shstrndx][4]
    wanted = next((s for s in sections if _name(data, names_at + s[0]) == section), None)
    if wanted is None:
        raise SystemExit(f"{path.name}: has no section {section}")
    start = -(-wanted[4] // PAGE) * PAGE
    end = (wanted[4] + wanted[5]) // PAGE * PAGE
    saved: int = end - start
    if saved <= 0:
        raise SystemExit(f"{path.name}: {section} holds less than a page")
    new = _split(segments, start, end) if wanted[2] & SHF_ALLOC else segments
    if new is None:
        raise SystemExit(f"{path.name}: cannot take {section} out of this layout")
    out = bytearray(data[:start] + data[end:])

    def moved(offset: int) -> int:
        return offset - saved if offset >= end else offset

    for i, s in enumerate(new):
        s = replace(s, offset=moved(s.offset))
        SEGMENT.pack_into(
            out, phoff + i * SEGMENT.size, s.type, s.flags, s.offset, s.vaddr, s.paddr, s.filesz, s.memsz, s.align
        )
    head[6] = moved(shoff)
    HEADER.pack_into(out, 0, *head)
    for i, fields in enumerate(sections):
        if fields is wanted:
            fields[1] = SHT_NOBITS if fields[2] & SHF_ALLOC else SHT_NULL
        fields[4] = moved(fields[4])
        SECTION.pack_into(out, head[6] + i * SECTION.size, *fields)
    path.write_bytes(out)
    return saved


def _split(segments: list[Segment], start: int, end: int) -> list[Segment] | None:
    """The segments with the file range [start, end) turned into zeroes; None when no segment allows it."""
    host = next((s for s in segments if s.type == PT_LOAD and s.offset <= start and end <= s.offset + s.filesz), None)
    note = next((s for s in segments if s.type == PT_NOTE), None)
    if host is None or note is None or host.flags & PF_W or host.align != PAGE:
        return None
    skip = end - host.offset
    before = replace(host, filesz=start - host.offset, memsz=skip)
    after = replace(
        host,
        offset=end,
        vaddr=host.vaddr + skip,
        paddr=host.paddr + skip,
        filesz=host.filesz - skip,
        memsz=host.memsz - skip,
    )
    # Loadable segments have to be in the order of their addresses.
    return [part for s in segments if s is not note for part in ((before, after) if s is host else (s,))]


def _name(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()
