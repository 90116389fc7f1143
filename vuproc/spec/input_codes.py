"""Names of the codes of input events: those of Linux, input-event-codes.h, without their prefix
and in lower case.
"""

from __future__ import annotations

from vuproc.spec.input import InputType

_KEYS = """
esc 1 2 3 4 5 6 7 8 9 0 minus equal backspace tab q w e r t y u i o p leftbrace rightbrace enter
leftctrl a s d f g h j k l semicolon apostrophe grave leftshift backslash z x c v b n m comma dot
slash rightshift kpasterisk leftalt space capslock f1 f2 f3 f4 f5 f6 f7 f8 f9 f10 numlock scrolllock
kp7 kp8 kp9 kpminus kp4 kp5 kp6 kpplus kp1 kp2 kp3 kp0 kpdot - zenkakuhankaku 102nd f11 f12 ro
katakana hiragana henkan katakanahiragana muhenkan kpjpcomma kpenter rightctrl kpslash sysrq
rightalt linefeed home up pageup left right end down pagedown insert delete macro mute volumedown
volumeup power kpequal kpplusminus pause scale kpcomma hangeul hanja yen leftmeta rightmeta compose
stop again props undo front copy open paste find cut help menu calc setup sleep wakeup file sendfile
deletefile xfer prog1 prog2 www msdos coffee rotate_display cyclewindows mail bookmarks computer
back forward closecd ejectcd ejectclosecd nextsong playpause previoussong stopcd record rewind phone
iso config homepage refresh exit move edit scrollup scrolldown kpleftparen kprightparen new redo f13
f14 f15 f16 f17 f18 f19 f20 f21 f22 f23 f24
"""
"""Those of a keyboard, from code 1 on; - is a code without a name."""

KEYS: dict[str, int] = {
    name: code for code, name in enumerate(_KEYS.split(), start=1) if name != "-"
}
BUTTONS: dict[str, int] = {
    "btn_left": 0x110,
    "btn_right": 0x111,
    "btn_middle": 0x112,
    "btn_side": 0x113,
    "btn_extra": 0x114,
    "btn_south": 0x130,
    "btn_east": 0x131,
    "btn_north": 0x133,
    "btn_west": 0x134,
    "btn_tl": 0x136,
    "btn_tr": 0x137,
    "btn_select": 0x13A,
    "btn_start": 0x13B,
    "btn_touch": 0x14A,
    "btn_stylus": 0x14B,
}
"""Those of mice and their like, which keep the beginning of their names: `left` is a key."""
REL: dict[str, int] = {"x": 0, "y": 1, "z": 2, "hwheel": 6, "dial": 7, "wheel": 8}
ABS: dict[str, int] = {"x": 0, "y": 1, "z": 2, "rx": 3, "ry": 4, "rz": 5, "pressure": 0x18}
SW: dict[str, int] = {"lid": 0, "tablet_mode": 1, "headphone_insert": 2, "dock": 5}
LED: dict[str, int] = {"numl": 0, "capsl": 1, "scrolll": 2, "compose": 3, "kana": 4}

NAMES: dict[InputType, dict[str, int]] = {
    InputType.KEY: KEYS | BUTTONS,
    InputType.REL: REL,
    InputType.ABS: ABS,
    InputType.SW: SW,
    InputType.LED: LED,
}
"""By type of event, the code of each name."""

_SHIFTED = dict(zip('!@#$%^&*()_+{}:"~|<>?', "1234567890-=[];'`\\,./", strict=True))
_PLAIN = {
    " ": "space",
    "\t": "tab",
    "\n": "enter",
    "-": "minus",
    "=": "equal",
    "[": "leftbrace",
    "]": "rightbrace",
    ";": "semicolon",
    "'": "apostrophe",
    "`": "grave",
    "\\": "backslash",
    ",": "comma",
    ".": "dot",
    "/": "slash",
}


def key_of(character: str) -> tuple[int, bool] | None:
    """The key of a character on a US keyboard, and whether shift is held; None: there is none."""
    plain = _SHIFTED.get(character, character.lower() if character.isascii() else character)
    code = KEYS.get(_PLAIN.get(plain, plain)) if len(character) == 1 else None
    return None if code is None else (code, plain != character)
