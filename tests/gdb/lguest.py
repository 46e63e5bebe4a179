# SPDX-License-Identifier: GPL-2.0-only
"""What gdb is told about lguest: `make gdb` loads it. `help lguest` lists the commands."""

import os
import struct
import subprocess

import gdb
from gdb.FrameDecorator import FrameDecorator
from gdb.unwinder import Unwinder

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), "..", ".."))
TANGLE = os.environ.get("LGUEST_TANGLE", os.path.join(ROOT, "target/release/tangle"))

# The register frame, as the Switcher leaves it: see the chapter "Three pages and a page of text".
REGISTERS = (
    "gs_base fs_base gs fs es ds r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 "
    "rax rcx rdx rsi rdi trapnum errcode rip cs rflags rsp ss"
).split()
TRAPS = {
    0: "divide error", 1: "debug", 2: "NMI", 3: "breakpoint", 6: "invalid opcode",
    7: "no FPU", 8: "double fault", 13: "general protection", 14: "page fault",
    18: "machine check", 31: "hypercall",
}


def header():
    """The numbers in the Switcher's header: name to value."""
    found = {}
    with open(os.path.join(ROOT, "switcher/layout.h"), encoding="ascii") as lines:
        for line in lines:
            words = line.split()
            if len(words) == 3 and words[0] == "#define" and words[2][0].isdigit():
                found[words[1]] = int(words[2], 0)
    return found


def word(at):
    return struct.unpack("<Q", gdb.selected_inferior().read_memory(at, 8).tobytes())[0]


def physical(at, size):
    """Reads physical memory, which QEMU's side of the protocol offers."""
    gdb.execute("maintenance packet Qqemu.PhyMemMode:1", to_string=True)
    try:
        return gdb.selected_inferior().read_memory(at, size).tobytes()
    finally:
        gdb.execute("maintenance packet Qqemu.PhyMemMode:0", to_string=True)


def translate(root, levels, at):
    """Where a virtual address is in the world of a page table; None if nowhere."""
    table = root & 0x000FFFFFFFFFF000
    for level in range(levels, 0, -1):
        shift = 12 + 9 * (level - 1)
        entry = struct.unpack("<Q", physical(table + (at >> shift & 511) * 8, 8))[0]
        if not entry & 1:
            return None
        table = entry & 0x000FFFFFFFFFF000
        if level == 1 or level < 4 and entry & 0x80:
            mask = (1 << shift) - 1
            return (table & ~mask) | (at & mask)
    return None


def address_of(symbol):
    return int(gdb.parse_and_eval("(unsigned long)&" + symbol))


class Guest:
    """The Guest that has just come out: only right at `back_in_host`."""

    def __init__(self):
        frame = gdb.newest_frame()
        if frame.pc() != address_of("back_in_host"):
            raise gdb.GdbError("only at a Guest exit (the breakpoint at back_in_host)")
        names = header()
        state = (int(frame.read_register("rdi")) & (1 << 64) - 1) + names["PAGE_BYTES"]
        self.root = word(state + names["GUEST_CR3"])
        self.levels = 5 if word(state + names["HOST_CR4"]) >> 12 & 1 else 4
        at = word(state + names["EXIT_RSP"])
        words = struct.unpack("<28Q", self.memory(at, 8 * 28))
        self.registers = dict(zip(REGISTERS, words))
        # A stub pushes its vector less 128.
        self.trap = (self.registers["trapnum"] + 128) & 0xFF

    def memory(self, at, size):
        """Bytes of one page, at an address as the Guest has it."""
        place = translate(self.root, self.levels, at)
        if place is None:
            raise gdb.GdbError("%#x is not in the Guest's shadow page table" % at)
        return physical(place, size)

    def why(self):
        name = TRAPS.get(self.trap)
        if name is None:
            name = "interrupt" if self.trap >= 32 else "trap"
        text = "trap %d (%s)" % (self.trap, name)
        if self.trap == 31:
            text += ", number %d" % self.registers["rax"]
        return "%s, from ring %d at %#x" % (
            text, self.registers["cs"] & 3, self.registers["rip"])


def chapter_of(path, line):
    """The chapter's line of a line of a tangled file; None if it has none."""
    if not path or not os.path.realpath(path).startswith(ROOT + os.sep):
        return None
    done = subprocess.run(
        [TANGLE, "--root", ROOT, "locate", "%s:%d" % (os.path.realpath(path), line)],
        capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def place_of(frame):
    where = frame.find_sal()
    if where.symtab is None:
        return None
    return chapter_of(where.symtab.fullname(), where.line)


class Chapters(FrameDecorator):
    """A frame of a backtrace, at its chapter's line."""

    def __init__(self, inner):
        super().__init__(inner)
        self.place = place_of(inner.inferior_frame())

    def filename(self):
        return self.place.rsplit(":", 1)[0] if self.place else super().filename()

    def line(self):
        return int(self.place.rsplit(":", 1)[1]) if self.place else super().line()


class Filter:
    name = "chapters"
    enabled = True
    priority = 100

    def __init__(self):
        gdb.frame_filters[self.name] = self

    def filter(self, frames):
        return (Chapters(frame) for frame in frames)


class FrameId:
    """What identifies a frame; gdb has a class of its own for it only from version 14."""

    def __init__(self, sp, pc):
        self.sp, self.pc = gdb.Value(sp), gdb.Value(pc)


class Switcher(Unwinder):
    """From the Switcher's last instructions to the Rust that called it. Its stack then has RBX,
    RBP and the flags on it, and the address to return to."""

    def __init__(self):
        super().__init__("switcher")

    def __call__(self, pending):
        pc, sp = int(pending.read_register("rip")), int(pending.read_register("rsp"))
        try:
            if pc != address_of("back_in_host"):
                return None
        except gdb.error:
            return None
        long = gdb.lookup_type("unsigned long")
        value = lambda at: gdb.Value(word(at)).cast(long)
        sp &= (1 << 64) - 1
        info = pending.create_unwind_info(FrameId(sp + 32, pc))
        info.add_saved_register("rbx", value(sp))
        info.add_saved_register("rbp", value(sp + 8))
        info.add_saved_register("rip", gdb.Value(word(sp + 24)).cast(long))
        info.add_saved_register("rsp", gdb.Value(sp + 32).cast(long))
        return info


class Prefix(gdb.Command):
    """lguest: guest-why, guest-regs, guest-x ADDRESS [WORDS], chapter, chapter-break PLACE."""

    def __init__(self):
        super().__init__("lguest", gdb.COMMAND_USER, prefix=True)


class Why(gdb.Command):
    """Says why the Guest has come out."""

    def __init__(self):
        super().__init__("guest-why", gdb.COMMAND_USER)

    def invoke(self, arguments, from_tty):
        print("The Guest is out: " + Guest().why() + ".")


class Registers(gdb.Command):
    """Prints the registers of the Guest that has just come out."""

    def __init__(self):
        super().__init__("guest-regs", gdb.COMMAND_USER)

    def invoke(self, arguments, from_tty):
        guest = Guest()
        for n, name in enumerate(REGISTERS):
            end = "\n" if n % 3 == 2 or n == len(REGISTERS) - 1 else "  "
            print("%8s 0x%016x" % (name, guest.registers[name]), end=end)


class Memory(gdb.Command):
    """Prints words of the Guest's memory: guest-x ADDRESS [HOW-MANY], at an address as it has it."""

    def __init__(self):
        super().__init__("guest-x", gdb.COMMAND_USER)

    def invoke(self, arguments, from_tty):
        words = gdb.string_to_argv(arguments)
        if not words:
            raise gdb.GdbError("guest-x ADDRESS [HOW-MANY]")
        guest = Guest()
        if words[0].startswith("$"):
            at = guest.registers.get(words[0][1:])
        else:
            at = int(gdb.parse_and_eval(words[0])) & (1 << 64) - 1
        if at is None:
            raise gdb.GdbError("no register is called " + words[0])
        for n in range(int(words[1]) if len(words) > 1 else 4):
            value = struct.unpack("<Q", guest.memory(at + 8 * n, 8))[0]
            print("%#018x  %#018x" % (at + 8 * n, value))


class Chapter(gdb.Command):
    """Says at which line of the chapters the selected frame is, and those that called it."""

    def __init__(self):
        super().__init__("chapter", gdb.COMMAND_USER)

    def invoke(self, arguments, from_tty):
        frame = gdb.selected_frame()
        while frame is not None and frame.is_valid():
            place = place_of(frame)
            if place is None and frame.find_sal().symtab is None:
                break
            if place is not None:
                print("%s, in %s" % (place, frame.name()))
            frame = frame.older()


class ChapterBreak(gdb.Command):
    """Sets a breakpoint at a line of a chapter: chapter-break book/host/run-loop.md:210"""

    def __init__(self):
        super().__init__("chapter-break", gdb.COMMAND_USER)

    def invoke(self, arguments, from_tty):
        done = subprocess.run(
            [TANGLE, "--root", ROOT, "locate", arguments.strip()],
            capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise gdb.GdbError(done.stderr.strip())
        for place in done.stdout.split():
            gdb.execute("break %s" % os.path.join(ROOT, place))


Filter()
gdb.unwinder.register_unwinder(None, Switcher(), replace=True)
for command in Prefix, Why, Registers, Memory, Chapter, ChapterBreak:
    command()
