"""Builds the guest's file system, one cpio archive: Debian's kernel modules and programs as they
are on this host, the programs of this tree, and the scenarios.

It knows nothing of qemu.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PYTHON = "/usr/bin/python3"
PROGRAMS = ["/bin/ip", "/bin/kmod", PYTHON, "/usr/sbin/conntrack", "/usr/sbin/ipset",
            "/usr/sbin/nft", "/usr/sbin/xtables-legacy-multi", "/usr/sbin/xtables-nft-multi"]
# The parts of the kernel's modules that networks and netfilter are made of.
MODULES = ["kernel/net/netfilter", "kernel/net/ipv4", "kernel/net/ipv6", "kernel/net/bridge",
           "kernel/net/core", "kernel/net/802", "kernel/net/llc", "kernel/net/netlink",
           "kernel/net/packet", "kernel/net/unix", "kernel/lib", "kernel/crypto",
           "kernel/arch/x86/crypto", "kernel/drivers/net/veth.ko"]
# What python needs besides what the scenarios import: it looks this up when it meets it.
LAZY = ["encodings.idna", "encodings.utf_8", "encodings.ascii", "encodings.latin_1"]


def output(*words):
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def kernel(cache):
    """The unpacked package of Debian's kernel; downloaded once."""
    unpacked = cache / "kernel"
    if not list(unpacked.glob("boot/vmlinuz-*")):
        shutil.rmtree(unpacked, ignore_errors=True)
        depends = output("apt-cache", "depends", "linux-image-amd64")
        package = re.search(r"Depends: (linux-image-\S+)", depends)
        if package is None:
            raise SystemExit("vm: apt knows no linux-image-amd64; run apt-get update")
        print(f"vm: downloading {package[1]}", file=sys.stderr)
        # Not installed: this host needs no kernel, and no start of it.
        subprocess.run(["apt-get", "download", "-q", package[1]], cwd=cache, check=True)
        archive = max(cache.glob(f"{package[1]}_*.deb"))
        subprocess.run(["dpkg", "-x", archive, unpacked], check=True)
        archive.unlink()
    return unpacked


def image(vmlinuz, binaries, parameters, cache):
    """Makes the archive; gives its path."""
    version = vmlinuz.name.removeprefix("vmlinuz-")
    root = cache / "root"
    shutil.rmtree(root, ignore_errors=True)
    for directory in ["bin", "sbin", "usr/bin", "usr/sbin", "etc", "proc", "sys", "dev", "run",
                      "tmp", "vm", "root", "var/lib"]:
        (root / directory).mkdir(parents=True)
    for program in PROGRAMS:
        add(root, Path(program))
    for program in binaries:
        add(root, program, Path("/usr/sbin") / program.name)
        subprocess.run(["strip", "-g", root / "usr/sbin" / program.name], check=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    (root / "sbin/modprobe").symlink_to("/bin/kmod")
    for plugin in Path("/usr/lib/x86_64-linux-gnu/xtables").glob("*.so"):
        add(root, plugin)
    for table in Path("/usr/sbin").glob("ip*tables*"):
        if table.is_symlink():
            (root / "usr/sbin" / table.name).symlink_to(os.readlink(table))
    shutil.copytree("/etc/alternatives", root / "etc/alternatives", symlinks=True,
                    ignore=lambda _, names: [name for name in names if "tables" not in name])
    modules(root, vmlinuz.parent.parent, version)
    python(root)

    etc = {
        "hosts": "10.66.0.1 gateway\nfd66::1 gateway\n10.66.0.2 nowhere\nfd66::2 nowhere\n",
        # Else the second address of a name is not found.
        "host.conf": "multi on\n",
        "nsswitch.conf": "hosts: files\npasswd: files\n",
        "passwd": "root:x:0:0:root:/root:/bin/sh\n",
    }
    for name, text in etc.items():
        (root / "etc" / name).write_text(text)
    # ipset looks up there what "tcp" is.
    shutil.copy("/etc/protocols", root / "etc/protocols")
    for part in (HERE / "guest").glob("*.py"):
        shutil.copy(part, root / "vm")
    (root / "vm/parameters.json").write_text(json.dumps(parameters))
    shutil.copy(HERE / "guest/init", root / "init")

    archive = cache / "initrd.cpio"
    with open(archive, "wb") as file:
        names = subprocess.run(["find", "."], cwd=root, check=True, capture_output=True)
        subprocess.run(["cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0"], cwd=root,
                       input=names.stdout, stdout=file, check=True)
    return archive


def add(root, source, target=None):
    """Copies a program or a library to where it is on this host, with the libraries it needs."""
    target = root / str(target or source).lstrip("/")
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
    # ldd has nothing to say, and fails, where no library is needed.
    needs = subprocess.run(["ldd", source], capture_output=True, text=True, check=False).stdout
    for library in re.findall(r"(/\S+) \(0x", needs):
        add(root, Path(library))


def modules(root, unpacked, version):
    source = unpacked / "lib/modules" / version
    target = root / "lib/modules" / version
    for part in MODULES:
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part)
        else:
            shutil.copy(source / part, target / part)
    for name in ["modules.order", "modules.builtin", "modules.builtin.modinfo"]:
        shutil.copy(source / name, target / name)
    subprocess.run(["/sbin/depmod", "-b", root, version], check=True)


def python(root):
    """The modules of python that the scenarios import, and what these import."""
    imports = set(LAZY)
    own = {part.stem for part in (HERE / "guest").glob("*.py")}
    for part in (HERE / "guest").glob("*.py"):
        imports |= set(re.findall(r"^(?:import|from) (\w+)", part.read_text(), re.MULTILINE))
    program = (f"import sys, {', '.join(sorted(imports - own))}\n"
               "for module in list(sys.modules.values()):\n"
               "    print(getattr(module, '__file__', None) or '')\n")
    for file in filter(None, output(PYTHON, "-IS", "-c", program).split("\n")):
        add(root, Path(file))
