"""The filter of a worker's system calls; Linux only.

Besides escapes it refuses three kinds of calls that no computation on the CPU needs: memory that
is in no private mapping, which the limit on memory would not count; files, locks and notifications
that two workers could exchange a message by; calls that are newer than this list.
"""

from __future__ import annotations

import os

ESCAPES = (
    "ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd", "mount", "umount2",
    "pivot_root", "move_mount", "open_tree", "fsopen", "fsconfig", "fsmount", "fspick",
    "mount_setattr", "unshare", "setns", "chroot", "keyctl", "add_key", "request_key", "bpf",
    "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register",
    "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "reboot",
    "swapon", "swapoff", "acct", "quotactl", "name_to_handle_at", "open_by_handle_at", "syslog",
    "settimeofday", "clock_settime", "sethostname", "setdomainname", "iopl", "ioperm",
    "fanotify_init", "lookup_dcookie", "vhangup", "personality",
)  # fmt: skip
UNCOUNTED_MEMORY = (
    "memfd_create", "shmget", "shmat", "msgget", "semget", "mq_open", "socket", "socketpair",
    "splice", "tee", "vmsplice", "io_setup", "epoll_create", "epoll_create1",
)  # fmt: skip
"""Memory that a process can hold without a mapping: by a descriptor, or by nothing at all."""
CHANNELS_TO_OTHERS = (
    "flock", "inotify_init", "inotify_init1", "mincore", "fadvise64", "readahead", "preadv2",
)  # fmt: skip
"""Locks on shared files, notices of their use, and what of them is in the page cache."""
MEMFD_SECRET = 447  # by number: libseccomp may be older than these calls
NEWER_CALLS = range(451, 512)  # from cachestat on; libc falls back to older calls
FORBIDDEN_SYSCALLS = (*ESCAPES, *UNCOUNTED_MEMORY, *CHANNELS_TO_OTHERS, MEMFD_SECRET)
"""System calls that fail with EPERM."""

NEW_NAMESPACES = 0x7E020000  # every CLONE_NEW* flag
SHARED_ANONYMOUS, HUGE_PAGES = 0x21, 0x40000  # flags of mmap
FILE_COMMANDS = (5, 6, 7, 36, 37, 38, 1024, 1025, 1026, 1031, 1032)
"""Commands of fcntl: F_GETLK to F_OFD_SETLKW, leases, F_NOTIFY, sizes of pipes."""


def syscall_filter() -> int:
    """A descriptor of the compiled seccomp filter, positioned at its beginning."""
    import pyseccomp as kernel  # loads libseccomp when it is imported

    refused, missing = kernel.ERRNO(1), kernel.ERRNO(38)  # EPERM, ENOSYS
    rules = kernel.SyscallFilter(kernel.ALLOW)
    for call in FORBIDDEN_SYSCALLS:
        rules.add_rule(refused, call)
    # A filter cannot read the flags of clone3 behind a pointer; after ENOSYS libc calls clone.
    for call in ("clone3", *NEWER_CALLS):
        rules.add_rule(missing, call)
    for bit in (1 << k for k in range(32) if NEW_NAMESPACES >> k & 1):
        rules.add_rule(refused, "clone", kernel.Arg(0, kernel.MASKED_EQ, bit, bit))
    for flags in (SHARED_ANONYMOUS, HUGE_PAGES):
        rules.add_rule(refused, "mmap", kernel.Arg(3, kernel.MASKED_EQ, flags, flags))
    for command in FILE_COMMANDS:
        rules.add_rule(refused, "fcntl", kernel.Arg(1, kernel.EQ, command))
    found = os.memfd_create("rules", 0)
    with os.fdopen(os.dup(found), "wb") as file:
        rules.export_bpf(file)
    os.lseek(found, 0, os.SEEK_SET)
    return found
