"""Submissions that use files, descriptors or the network, or look for secrets."""

from __future__ import annotations

from functools import partial

from tests.sandbox.hostile.case import TRIALS, End, HostileCase, attack, defense

MARK = "gauntlet-hostile-file"
"""In the name of each file that a submission tries to leave."""

files = partial(HostileCase, family="files", end=End.FAILED)
network = partial(HostileCase, family="network", end=End.FAILED)
secrets = partial(HostileCase, family="secrets", end=End.FAILED)

OUTSIDE = f"""
    import os, sys
    import bench, plugins
    places = [os.path.dirname(torch.__file__), os.path.dirname(bench.__file__),
              os.path.dirname(plugins.__file__), sys.prefix, os.path.dirname(sys.executable),
              "/", "/usr", "/usr/lib", "/etc", "/var/tmp", "/dev", "/dev/shm", "/run", "/home",
              "/root", "/proc/self/attr", "/sys"]
    attempt(*(lambda p=p: open(os.path.join(p, "{MARK}"), "w") for p in places),
            *(lambda p=p: os.mkdir(os.path.join(p, "{MARK}")) for p in places),
            lambda: os.rename("/tmp", "/usr/{MARK}"),
            lambda: open(bench.__file__, "a"),
            lambda: os.utime(bench.__file__),
            lambda: os.chmod(bench.__file__, 0o777),
            lambda: os.unlink(bench.__file__))
"""

FILES = (
    files(
        name="fills-its-folder", code="disk_limit",
        source=defense(forward=f"""
            for k in range(1000): open(f"/tmp/{MARK}-{{k}}", "wb").write(bytes(2**20))
        """),
    ),
    files(
        name="one-sparse-terabyte", code="disk_limit",
        source=defense(forward=f'open("/tmp/{MARK}", "wb").truncate(2**40)'),
    ),
    files(
        name="million-empty-files", code="disk_limit",
        sentence="more than 10000 files|No space left",
        source=defense(forward=f"""
            import os
            k = 0
            while True:
                os.close(os.open(f"/tmp/{MARK}-{{k}}", os.O_CREAT))
                k += 1
        """),
    ),
    files(
        name="symbolic-links-to-the-harness", code="blocked",
        source=defense(top=TRIALS, forward=f"""
            import os
            import bench
            os.symlink(os.path.dirname(bench.__file__), "/tmp/{MARK}")
            os.symlink("/etc/shadow", "/tmp/{MARK}-shadow")
            os.symlink("/proc/1/root", "/tmp/{MARK}-root")
            attempt(lambda: open("/tmp/{MARK}/{MARK}", "w"),
                    lambda: open("/tmp/{MARK}-shadow"),
                    lambda: os.listdir("/tmp/{MARK}-root/home"),
                    lambda: os.link("/usr/bin/env", "/tmp/{MARK}-hard"))
        """),
    ),
    files(
        name="pipe-without-a-writer", code="timeout",
        source=defense(forward=f'import os\nos.mkfifo("/tmp/{MARK}")\nopen("/tmp/{MARK}")'),
    ),
    files(
        name="writes-outside-its-folder", code="blocked",
        source=defense(top=TRIALS, forward=OUTSIDE),
    ),
    files(
        name="writes-outside-from-an-attack", code="blocked", kind="attack",
        source=attack(top=TRIALS, step=OUTSIDE),
    ),
    files(
        name="device-nodes-and-owners", code="blocked",
        source=defense(top=TRIALS, forward=f"""
            import os, stat
            attempt(lambda: os.mknod("/tmp/{MARK}", 0o666 | stat.S_IFBLK, os.makedev(8, 0)),
                    lambda: os.chown("/tmp", 0, 0),
                    lambda: open("/dev/mem", "rb"), lambda: open("/dev/kmsg", "w"),
                    lambda: open("/proc/sys/kernel/core_pattern", "w"),
                    lambda: open("/proc/sysrq-trigger", "w"),
                    lambda: os.write(os.open("/proc/1/oom_score_adj", os.O_WRONLY), b"-1000"))
        """),
    ),
    files(
        name="files-that-stay-between-calls", code="ok", end=End.UNCHANGED,
        source=defense(forward=f'open(f"/tmp/{MARK}-{{self.calls}}", "w").write("kept")'),
    ),
    files(
        name="hundred-thousand-descriptors", code="file_limit",
        source=defense(forward='kept = [open("/dev/null") for _ in range(10**5)]'),
    ),
    files(
        name="closes-every-descriptor", code="worker_died",
        source=defense(forward="import os\nos.closerange(0, 256)"),
    ),
)  # fmt: skip

NETWORK = (
    network(
        name="sockets-of-every-family", code="blocked",
        source=defense(top=TRIALS, forward="""
            import socket
            kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW)
            families = (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET,
                        socket.AF_VSOCK, 38, 16, 44)
            attempt(*(lambda f=f, k=k: socket.socket(f, k) for f in families for k in kinds))
        """),
    ),
    network(
        name="unix-sockets-of-the-host", code="blocked",
        source=defense(top=TRIALS, forward="""
            import glob, socket
            def reach(path):
                with socket.socket(socket.AF_UNIX) as made: made.connect(path)
                return path
            hosts = [line.split()[-1] for line in open("/proc/net/unix") if "@" in line
                     or line.rstrip().endswith("sock")]
            names = ["/run/dbus/system_bus_socket", "/var/run/docker.sock", "/run/systemd/private",
                     "/var/run/postgresql/.s.PGSQL.5432", "\\0gauntlet"]
            attempt(*(lambda n=n: reach(n) for n in [*names, *hosts]))
        """),
    ),
    network(
        name="attack-that-sends-its-images-away", code="blocked", kind="attack",
        source=attack(top=TRIALS, step="""
            import socket
            def send(family):
                made = socket.socket(family, socket.SOCK_DGRAM)
                return made.sendto(bytes(problem.x.numpy().data), ("127.0.0.1", 9))
            attempt(lambda: send(socket.AF_INET), lambda: send(socket.AF_INET6))
        """),
    ),
)  # fmt: skip

SECRETS = (
    secrets(
        name="environments-and-memories", code="blocked",
        source=defense(top=TRIALS, forward="""
            import glob, os
            def secret(path):
                with open(path, "rb") as file: found = file.read()
                if b"GAUNTLET_SECRET" in found: return path
                raise LookupError("not there")
            others = [p for p in os.listdir("/proc") if p.isdigit() and int(p) != os.getpid()]
            def memory(path):
                with open(path, "r+b", 0) as file: return path
            attempt(*(lambda p=p: secret(p) for p in glob.glob("/proc/[0-9]*/environ")),
                    *(lambda p=p: secret(p) for p in glob.glob("/proc/[0-9]*/cmdline")),
                    *(lambda p=p: memory(f"/proc/{p}/mem") for p in others),
                    lambda: os.environ["GAUNTLET_SECRET"])
        """),
    ),
    secrets(
        name="folders-of-the-user", code="blocked",
        source=defense(top=TRIALS, forward="""
            import glob, os
            def listed(pattern):
                found = glob.glob(pattern, include_hidden=True)
                if found: return found
                raise LookupError("nothing")
            attempt(lambda: open("/etc/shadow"), lambda: open("/etc/passwd"),
                    lambda: listed("/home/*"), lambda: listed("/root/.ssh/*"),
                    lambda: listed("/root/.bash*"), lambda: listed("/var/lib/*"),
                    lambda: listed("/**/*.db"), lambda: listed("/**/card.toml"),
                    lambda: listed("/**/*.safetensors"), lambda: listed("/data/*"),
                    lambda: listed("/**/.git"))
        """),
    ),
    secrets(
        name="labels-of-the-test-images", code="blocked",
        source=defense(top=TRIALS, forward="""
            import glob, sys
            def listed(pattern):
                found = [p for root in sys.path for p in glob.glob(root + pattern)]
                if found: return open(found[0], "rb").read(10)
                raise LookupError("nothing")
            attempt(lambda: listed("/sklearn/datasets/data/digits*"),
                    lambda: listed("/sklearn/datasets/data/*.csv"),
                    lambda: listed("/torchvision/datasets/*/*.gz"))
        """),
    ),
    secrets(
        name="labels-in-the-callers-memory", code="blocked",
        source=defense(top=TRIALS, forward="""
            import gc, sys
            def tensor():
                found = [o for o in gc.get_objects() if isinstance(o, torch.Tensor)
                         and o.dtype == torch.int64 and o.numel() == len(images)]
                if found: return found[0]
                raise LookupError("nothing")
            def variable():
                at = sys._getframe()
                while at := at.f_back:
                    for name in at.f_locals:
                        if name in ("y", "label", "labels", "target"): return at.f_code.co_name
                raise LookupError("nothing")
            attempt(tensor, variable)
        """),
    ),
    secrets(
        name="attack-that-looks-for-the-defense", code="blocked", kind="attack",
        source=attack(top=TRIALS, step="""
            import gc
            def nets():
                found = [o for o in gc.get_objects() if isinstance(o, nn.Module)]
                if found: return found[0]
                raise LookupError("nothing")
            def examples():
                if problem.example.any(): return problem.example
                raise LookupError("no numbers")
            attempt(nets, examples, lambda: problem.model_access.module)
        """),
    ),
    secrets(
        name="other-submissions", code="blocked",
        source=defense(top=TRIALS, build="""
            import glob, os
            def beside():
                found = [p for p in glob.glob(os.path.dirname(__file__) + "/../*/*")]
                if found: return found
                raise LookupError("nothing")
            attempt(beside, lambda: open(__file__))
        """),
    ),
)  # fmt: skip
