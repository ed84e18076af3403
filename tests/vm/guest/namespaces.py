"""Network namespaces of the guest: running things in them, and looking at ports from them.

It knows nothing of spa-server; times are those of CLOCK_BOOTTIME, in seconds.
"""

import ctypes
import errno
import os
import select
import socket
import struct
import subprocess
import threading
import time

CLONE_NEWNET = 0x40000000
ETH_P_ALL = 3
# A port that nobody guards, beside the one that is looked at.
CONTROL = 9
# A port that is silent for so long, after the control that was asked later has answered, is closed.
PATIENCE = 0.1
# Longer than a SYN takes to be sent once more.
CONTROL_PATIENCE = 5
BETWEEN_ATTEMPTS = 0.05

SERVER = {"ipv4": "10.66.0.1", "ipv6": "fd66::1"}
CLIENT = {"ipv4": "10.66.0.2", "ipv6": "fd66::2"}
FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}

libc = ctypes.CDLL(None, use_errno=True)


def boottime():
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def slept():
    """How long the machine was suspended since it started."""
    return boottime() - time.monotonic()


def run(*words, **options):
    """Runs a program to its end; a failure is an error that says what it printed."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, **options)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise RuntimeError(f"{' '.join(words)}: exit status {done.returncode}: {said}")
    return done.stdout


def join(server, client):
    """Makes two namespaces with one link between them."""
    for name in (server, client):
        run("ip", "netns", "add", name)
    run("ip", "-n", server, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0",
        "netns", client)
    for name, addresses in ((server, SERVER), (client, CLIENT)):
        lines = (f"addr add {addresses['ipv4']}/24 dev eth0\n"
                 f"addr add {addresses['ipv6']}/64 dev eth0 nodad\n"
                 "link set lo up\nlink set eth0 up\n")
        run("ip", "-n", name, "-batch", "-", input=lines)


def enter(namespace):
    """Moves this thread, and what it starts, into the namespace."""
    with open(f"/run/netns/{namespace}", "rb") as file:
        if libc.setns(file.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")


def inside(namespace, work):
    """Does `work` in the namespace; gives back what it gives. Its sockets stay there."""
    result = []

    def task():
        try:
            enter(namespace)
            result.append((work(), None))
        except Exception as error:  # handed on to the caller's thread
            result.append((None, error))

    thread = threading.Thread(target=task)
    thread.start()
    thread.join()
    value, error = result[0]
    if error is not None:
        raise error
    return value


def connect(family, port):
    """Whether a new TCP connection to the server is accepted. From the client's namespace.

    The control goes the same way, behind it: however busy the host of this machine is, silence
    is not taken for a refusal before the control has answered. Both pass through the queue of
    one processor, so they can't overtake one another.
    """
    os.sched_setaffinity(0, {0})
    with attempt(family, port) as asked, attempt(family, CONTROL) as control:
        for s, seconds in ((control, CONTROL_PATIENCE), (asked, PATIENCE)):
            answered = select.select([], [s], [], seconds)[1]
            error = s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, f"connecting by {family}: {os.strerror(error)}")
            if not answered and s is control:
                raise OSError(errno.ETIMEDOUT, "the port that nobody guards does not answer")
        return bool(answered)


def attempt(family, port):
    s = socket.socket(FAMILIES[family], socket.SOCK_STREAM)
    # To be closed by a reset, which leaves nothing behind.
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.setblocking(False)
    s.connect_ex((SERVER[family], port))
    return s


def send(family, port, datagram):
    """Sends a datagram to the server. From the client's namespace."""
    with socket.socket(FAMILIES[family], socket.SOCK_DGRAM) as s:
        s.sendto(datagram, (SERVER[family], port))


def serve(namespace, port):
    """A listener that accepts and hangs up, on IPv4 and IPv6, for as long as the guest runs."""
    listener = inside(namespace, lambda: socket.create_server(
        ("::", port), family=socket.AF_INET6, backlog=64, dualstack_ipv6=True))

    def task():
        while True:
            try:
                listener.accept()[0].close()
            except ConnectionError:
                pass  # whoever came is gone already

    threading.Thread(target=task, daemon=True).start()


class Prober(threading.Thread):
    """Tries new connections to the server's port, one after the other, until it is stopped.

    `attempts` are (begin, end, seconds suspended before, accepted). An attempt that was
    under way while the machine slept says nothing, and is left out.
    """

    def __init__(self, namespace, family, port):
        super().__init__(daemon=True)
        self.namespace, self.family, self.port = namespace, family, port
        self.attempts = []
        self.error = None
        self.stopping = threading.Event()

    def run(self):
        try:
            enter(self.namespace)
            while not self.stopping.is_set():
                begin, asleep = boottime(), slept()
                accepted = connect(self.family, self.port)
                if slept() - asleep < 0.5:
                    self.attempts.append((begin, boottime(), asleep, accepted))
                if accepted:
                    self.stopping.wait(BETWEEN_ATTEMPTS)
        except Exception as error:  # told when it is asked for
            self.error = error

    def has_seen_it_open(self, since):
        return any(accepted for begin, _, _, accepted in list(self.attempts) if begin >= since)

    def stop(self):
        self.stopping.set()
        self.join()
        if self.error is not None:
            raise self.error
        return self.attempts


def capture(namespace, interface, port, work):
    """Does `work`; gives back the payloads, by family, of what went to the UDP port meanwhile."""
    tap = inside(namespace, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW,
                                                  socket.htons(ETH_P_ALL)))
    with tap:
        inside(namespace, lambda: tap.bind((interface, ETH_P_ALL)))
        work()
        seen = {}
        # Who is new on a link is looked for first, and the datagram waits for that.
        tap.settimeout(CONTROL_PATIENCE)
        while set(seen) != set(FAMILIES):
            try:
                frame = tap.recv(2048)
            except TimeoutError:
                break
            kind, ip = frame[12:14], frame[14:]
            if kind == b"\x08\x00" and ip[9] == socket.IPPROTO_UDP:
                family, udp = "ipv4", ip[(ip[0] & 15) * 4:]
            elif kind == b"\x86\xdd" and ip[6] == socket.IPPROTO_UDP:
                family, udp = "ipv6", ip[40:]
            else:
                continue
            to, length = struct.unpack_from(">HH", udp, 2)
            if to == port:
                seen[family] = udp[8:length]
        return seen


def write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
