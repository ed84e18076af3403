"""What happens to the daemon and to the clocks while a grant is open, in the guest.

Each event (nothing, a clock step, a suspend) strikes all scenes at once: one scene for every
back-end and every state of the daemon. Prints what it does; the results go to the second
serial port, as one JSON document.
"""

import json
import os
import re
import threading
import time
import traceback

import judge
import namespaces
from scene import NotRun, Scene, Variant

DAEMONS = ["alive", "frozen", "dead"]
HOUR = 3600
# How long the port is watched after the kernel's timer is over.
WATCH = 5
# How long a port has to stay closed after a replay.
QUIET = 1.5


class Event:
    """What strikes, with the freshness window and the lifetime of the grants that suit it."""

    # Whether the clock has to be right again before a fresh knock can open.
    needs_undoing = False

    def __init__(self, name, freshness, lifetime):
        self.name, self.freshness, self.lifetime = name, freshness, lifetime

    def strike(self):
        pass

    def undo(self):
        pass


class Step(Event):
    """The realtime clock is set, for the server and its client."""

    def __init__(self, name, seconds):
        super().__init__(name, freshness=10, lifetime=15)
        self.seconds = seconds
        # Behind the floor of the replay window nothing opens, by design.
        self.needs_undoing = seconds < 0

    def strike(self):
        set_clock(self.seconds)

    def undo(self):
        set_clock(-self.seconds)


class Suspend(Event):
    """To RAM; who runs the machine wakes it up."""

    def strike(self):
        before = namespaces.slept()
        namespaces.write("/sys/power/mem_sleep", "deep")
        namespaces.write("/sys/power/state", "mem")
        asleep = namespaces.slept() - before
        say(f"slept for {asleep:.1f} s")
        if asleep < self.lifetime:
            raise RuntimeError("the machine did not sleep beyond the end of the grants")


EVENTS = [
    # Here the replays come within the freshness window: only the replay window can refuse them.
    Event("nothing", freshness=120, lifetime=15),
    Step("clock +1 h", HOUR),
    Step("clock -1 h", -HOUR),
    # Here what was held back is older than the freshness window when it is delivered.
    Suspend("suspend", freshness=30, lifetime=30),
]


def say(text):
    print(f"guest: [{namespaces.boottime():6.1f}] {text}", flush=True)


def set_clock(by):
    time.clock_settime(time.CLOCK_REALTIME, time.time() + by)


def at_once(scenes, work):
    """Does `work` for all scenes side by side; gives those that did not fail."""
    def task(scene):
        try:
            work(scene)
        except NotRun as reason:
            scene.result["not_run"] = str(reason)
        except Exception as error:  # the other scenes go on
            traceback.print_exc()
            scene.result["failure"] = f"{type(error).__name__}: {error}"

    threads = [threading.Thread(target=task, args=(scene,)) for scene in scenes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [scene for scene in scenes if not {"failure", "not_run"} & set(scene.result)]


def play(event, variants):
    """One event, from the first namespace to the last; gives the results of all scenes."""
    everything, scenes = [], []
    say(f"{event.name}: setting up {len(variants) * len(DAEMONS)} scenes")
    for variant in variants:
        # One after the other, a back-end that can't be tried says so once.
        for daemon in DAEMONS:
            scene = Scene(variant, daemon, event.freshness, event.lifetime)
            scene.result = {
                "backend": variant.name, "event": event.name, "daemon": daemon,
                "lifetime": event.lifetime,
                "expected": judge.expected(variant.backend, event.name, daemon),
            }
            everything.append(scene)
            scenes += at_once([scene], Scene.set_up)
    if scenes:
        try:
            play_scenes(event, scenes)
        except Exception as error:  # the other events go on
            traceback.print_exc()
            for scene in scenes:
                scene.result.setdefault("failure", f"{type(error).__name__}: {error}")
    for scene in everything:
        finish(scene, event)
    return [scene.result for scene in everything]


def play_scenes(event, scenes):
    say(f"{event.name}: knocking")
    scenes = at_once(scenes, Scene.hold)
    for scene in scenes:
        scene.probe()
    time.sleep(1)
    scenes = at_once(scenes, Scene.knock)
    scenes = at_once(scenes, Scene.await_opened)
    for scene in scenes:
        scene.strike()
    if not scenes:
        return
    # This clock stands still in suspend, as jiffies do.
    over = time.monotonic() + event.lifetime + WATCH
    say(f"{event.name}: it strikes")
    event.strike()
    try:
        while time.monotonic() < over:
            time.sleep(0.1)
        scenes = at_once(scenes, look)
        say(f"{event.name}: replays")
        scenes = at_once(scenes, recover)
        scenes = at_once(scenes, lambda scene: replay(scene, event, "replay"))
        if event.needs_undoing:
            event.undo()
            scenes = at_once(scenes, lambda scene: replay(scene, event, "replay_later"))
        say(f"{event.name}: fresh knocks")
        at_once(scenes, lambda scene: control(scene, event))
    finally:
        if not event.needs_undoing:
            event.undo()


def look(scene):
    """Judges when the port was closed."""
    for family, prober in scene.probers.items():
        scene.result[family] = judge.closing(prober.stop(), scene.knocked, scene.lifetime)


def recover(scene):
    """Brings the daemon back; now at the latest nothing is open."""
    scene.recover()
    scene.result["closed_with_daemon"] = scene.await_accepts(set(), 5)


def replay(scene, event, name):
    """Old knocks open nothing: those that were accepted, and those that were held back."""
    scene.deliver(scene.captured)
    if event.name != "nothing":
        scene.deliver(scene.held)
    until = time.monotonic() + QUIET
    opened = set()
    while time.monotonic() < until:
        opened |= scene.accepts()
    scene.result[name] = "opens " + ", ".join(sorted(opened)) if opened else "opens nothing"
    dropped = scene.status()["dropped"].items()
    scene.result["dropped"] = {reason: count for reason, count in dropped if count}


def control(scene, event):
    """A knock that is neither old nor known opens: the replays failed for no other reason."""
    begin = time.monotonic()
    if event.name == "nothing":
        scene.deliver(scene.held)
        opens = scene.await_accepts(set(namespaces.FAMILIES), 5)
    else:
        # A clock that went forward puts up a barrier of one freshness window.
        opens = False
        while not opens and time.monotonic() < begin + event.freshness + 60:
            scene.knock()
            opens = scene.await_accepts(set(namespaces.FAMILIES), 1.5)
    scene.result["fresh_knock"] = "opens" if opens else "opens nothing"
    scene.result["fresh_knock_after"] = round(time.monotonic() - begin, 1)


def steps_seen(scene, event):
    """The steps of the clock that the daemon speaks of, and whether it speaks of the right ones.

    A suspend is none. Of a daemon that was dead meanwhile, or has come back after it was over,
    nothing is asked.
    """
    seen = re.findall("the clock was set (forward|back)", scene.log())
    scene.result["steps_seen"] = seen
    if not isinstance(event, Step):
        return not seen
    return scene.daemon != "alive" or ("forward" if event.seconds > 0 else "back") in seen


def finish(scene, event):
    """Says whether all is as expected, and removes the scene."""
    result = scene.result
    result["as_expected"] = "not_run" in result or (
        "failure" not in result
        and all(result[family]["outcome"] == result["expected"]
                for family in namespaces.FAMILIES)
        and result["closed_with_daemon"]
        and {result["replay"], result.get("replay_later", "opens nothing")} == {"opens nothing"}
        and result["fresh_knock"] == "opens"
        and steps_seen(scene, event))
    if not result["as_expected"]:
        try:
            result["log"] = scene.log()
        except OSError:
            pass
    scene.tear_down()


def main():
    with open("/vm/parameters.json", encoding="utf-8") as file:
        parameters = json.load(file)
    variants = [Variant(name) for name in parameters["backends"]]
    results = []
    for event in EVENTS:
        if event.name in parameters["events"]:
            results += play(event, variants)
    document = {"kernel": os.uname().release, "results": results}
    with open("/dev/ttyS1", "w", encoding="utf-8") as port:
        port.write(json.dumps(document) + "\n")


main()
