"""One spa-server and one spa-client in the guest, each in a namespace of its own."""

import json
import os
import signal
import subprocess
import time

import namespaces
from namespaces import boottime, run

SSH = 22
KNOCKS = 62201
TABLES = ["iptables", "iptables-restore", "iptables-save",
          "ip6tables", "ip6tables-restore", "ip6tables-save"]


class NotRun(Exception):
    """The server knows no such back-end."""


class Variant:
    """A back-end, and what `iptables` stands for on its host: `ipset/legacy`, `nftables`."""

    def __init__(self, name):
        self.name = name
        self.backend, _, tables = name.partition("/")
        self.tables = tables or "nft"
        # Why it can't be tried, once that is known.
        self.not_run = None


class Scene:
    """A server behind a gate with the service ssh, and a client that may open it."""

    number = 0

    def __init__(self, variant, daemon, freshness, lifetime):
        Scene.number += 1
        self.variant, self.daemon = variant, daemon
        self.freshness, self.lifetime = freshness, lifetime
        self.server, self.client = f"server{Scene.number}", f"client{Scene.number}"
        self.directory = f"/vm/scenes/{Scene.number}"
        self.config = f"{self.directory}/server.toml"
        self.process = None
        self.probers = {}
        self.knocked = None
        self.captured = {}
        self.held = {}

    def set_up(self):
        if self.variant.not_run:
            raise NotRun(self.variant.not_run)
        namespaces.join(self.server, self.client)
        # `ip netns exec` lays this over /etc: update-alternatives, for one namespace.
        for tool in TABLES:
            family, _, rest = tool.partition("-")
            target = "-".join(filter(None, [family, self.variant.tables, rest]))
            link = f"/etc/netns/{self.server}/alternatives/{tool}"
            os.makedirs(os.path.dirname(link), exist_ok=True)
            os.symlink(f"/usr/sbin/{target}", link)
        for port in (SSH, namespaces.CONTROL):
            namespaces.serve(self.server, port)
        server_key = self.admin("init", "--dir", self.directory).split()[0]
        self.configure()
        client_key = self.spa_client("keygen").split()[0]
        self.admin("client", "add", "laptop", "--public-key", client_key, "--allow", "ssh")
        for name in ("gateway", "nowhere"):
            self.spa_client("server", "add", name, "--host", name, "--public-key", server_key)
        self.start()

    def configure(self):
        """Writes server.toml; raises NotRun if this server has no such back-end."""
        def text(backend):
            return (f'interfaces = ["eth0"]\nfreshness = "{self.freshness}s"\n'
                    f'private-key-file = "{self.directory}/server.key"\n'
                    f'state-directory = "{self.directory}/state"\n'
                    f'control-socket = "{self.directory}/control.sock"\n'
                    f'[gate]\n{backend}[services.ssh]\nports = ["tcp/{SSH}"]\n')
        namespaces.write(self.config, text(f'backend = "{self.variant.backend}"\n'))
        os.chmod(self.config, 0o600)
        try:
            self.admin("client", "list")
        except RuntimeError as error:
            if "backend" not in str(error):
                raise
            if self.variant.backend != "ipset" or "unknown field" not in str(error):
                self.variant.not_run = str(error)[str(error).find("unknown"):]
                raise NotRun(self.variant.not_run) from error
            # A server that has one back-end only, which has no name yet.
            namespaces.write(self.config, text(""))

    def admin(self, *words):
        return run("ip", "netns", "exec", self.server, "spa-server", "--config", self.config,
                   *words)

    def spa_client(self, *words):
        environment = {**os.environ, "SPA_CONFIG_DIR": f"{self.directory}/laptop"}
        return run("ip", "netns", "exec", self.client, "spa-client", *words, env=environment)

    def start(self):
        with open(f"{self.directory}/log", "a", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", self.server, "spa-server", "--config", self.config, "run"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, "NO_COLOR": "1"}, start_new_session=True)
        deadline = time.monotonic() + 60
        while True:
            try:
                return self.status()
            except RuntimeError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the daemon does not start: {self.log()}") from None
                time.sleep(0.2)

    def status(self):
        return json.loads(self.admin("status", "--json"))

    def log(self):
        with open(f"{self.directory}/log", encoding="utf-8") as file:
            return file.read()

    def probe(self):
        """Begins to look at the port, by both families."""
        for family in namespaces.FAMILIES:
            self.probers[family] = namespaces.Prober(self.client, family, SSH)
            self.probers[family].start()

    def knock(self):
        """Knocks by both families, and keeps what went over the wire."""
        def knock():
            self.spa_client("open", "ssh@gateway", "--no-wait", "--lifetime", f"{self.lifetime}s")
        self.knocked = boottime()
        seen = namespaces.capture(self.client, "eth0", KNOCKS, knock)
        if set(seen) != set(namespaces.FAMILIES):
            raise RuntimeError(f"captured knocks by {sorted(seen)} only")
        self.captured = seen

    def hold(self):
        """Takes knocks off the wire that the server never sees: they go to the client itself."""
        self.held = namespaces.capture(
            self.client, "lo", KNOCKS,
            lambda: self.spa_client("open", "ssh@nowhere", "--no-wait", "--lifetime", "5s"))
        if set(self.held) != set(namespaces.FAMILIES):
            raise RuntimeError(f"held back knocks by {sorted(self.held)} only")

    def deliver(self, datagrams):
        for family, datagram in datagrams.items():
            namespaces.inside(self.client, lambda f=family, d=datagram:
                              namespaces.send(f, KNOCKS, d))

    def accepts(self):
        """The families by which a new connection is accepted now."""
        return {family for family in namespaces.FAMILIES
                if namespaces.inside(self.client, lambda f=family: namespaces.connect(f, SSH))}

    def await_accepts(self, families, seconds):
        deadline = time.monotonic() + seconds
        while True:
            if self.accepts() == families:
                return True
            if time.monotonic() > deadline:
                return False

    def await_opened(self):
        """Waits until the knocks of both families are carried out, each by tools that may be slow."""
        deadline = time.monotonic() + self.lifetime / 2
        while not (self.log().count("event=opened") >= len(namespaces.FAMILIES)
                   and all(prober.has_seen_it_open(self.knocked)
                           for prober in self.probers.values())):
            if time.monotonic() > deadline:
                raise RuntimeError("the port is not seen open in half of their lifetime")
            time.sleep(0.1)

    def strike(self):
        """Brings the daemon, all of its processes, into the state that the scene is about."""
        if self.daemon == "dead":
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        elif self.daemon == "frozen":
            os.killpg(self.process.pid, signal.SIGSTOP)

    def recover(self):
        """The opposite of `strike`."""
        if self.daemon == "dead":
            self.start()
        elif self.daemon == "frozen":
            os.killpg(self.process.pid, signal.SIGCONT)

    def tear_down(self):
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for name in (self.server, self.client):
            if os.path.exists(f"/run/netns/{name}"):
                run("ip", "netns", "del", name)
