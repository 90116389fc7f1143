"""The system calls of a sandbox that Python has no name for: each raises OSError if it fails."""

def landlock_abi() -> int:
    """The kernel's version of Landlock."""

def landlock_ruleset(fs: int, net: int, scoped: int, size: int) -> int:
    """A new ruleset that handles these accesses: its descriptor, which is the caller's.

    `size`: bytes of struct landlock_ruleset_attr that the kernel's version knows.
    """

def landlock_allow(ruleset: int, path: int, access: int) -> None:
    """Allow `access` to what is at or beneath `path`, an open descriptor."""

def landlock_restrict(ruleset: int) -> None:
    """Bind this thread, and those that it starts, to a ruleset for good."""

def seccomp(program: bytes) -> None:
    """Have every thread of this process filtered by `program`, of eight bytes an instruction."""

def seccomp_listener(program: bytes) -> int:
    """The same; the filter's listener (seccomp_unotify(2)): a descriptor, which is the caller's.

    It hangs up once the last thread with this filter has ended. Raises OSError where the kernel has
    none to give (before 5.7), or a filter that is in force already has one.
    """

def prctl(option: int, value: int, more: int = 0) -> int:
    """As prctl(2); what it gives."""

def call(number: int, a: int = 0, b: int = 0, c: int = 0) -> int:
    """Any system call of up to three numbers; what it gives."""

def keep_capabilities(keep: int) -> None:
    """Give up all capabilities but those whose bits are in `keep`, for good."""

def report_violations(file: int) -> None:
    """Have the filter's SIGSYS note its call in `file`, which stays open; then the handler that was
    there goes on. Where it does not end the process, the kernel does.
    """
