"""A model that does what a test tells it to: die, hang, raise, count, remember."""

SCORE = '''
import ctypes, json, os, signal, sys, time
from pathlib import Path

HERE = Path(__file__).parent
CALLS = HERE / "calls"


def load_model():
    if (HERE / "refuse-to-load").exists():
        raise RuntimeError("this model refuses to load")
    if (HERE / "die-on-load").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    if (HERE / "slow-load").exists():
        time.sleep(float((HERE / "slow-load").read_text()))
    return "model"


def once(name):
    """True the first time that any replica asks."""
    try:
        os.close(os.open(str(HERE / ("once-" + name)), os.O_CREAT | os.O_EXCL))
        return True
    except FileExistsError:
        return False


def allocate(megabytes):
    hoard = []
    for _ in range(megabytes):
        hoard.append(b"x" * (1 << 20))
    return len(hoard)


def do(data):
    what = data.get("do", "answer")
    if what == "once":
        first = once(data["name"])
        return do(dict(data, do=data["then"])) if first else {"pid": os.getpid(), "replayed": True}
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "segfault":
        ctypes.string_at(0)
    if what == "exit":
        os._exit(data.get("code", 0))
    if what == "close":
        os.closerange(3, 256)
    if what == "sysexit":
        sys.exit(3)
    if what == "raise":
        raise ValueError("the secret of the traceback")
    if what == "sleep":
        time.sleep(data["seconds"])
    if what == "wait":
        while not (HERE / "go-on").exists():
            time.sleep(0.005)
    if what == "hold-gil":
        ctypes.PyDLL(None).sleep(int(data["seconds"]))
    if what == "allocate":
        return {"allocated": allocate(data["megabytes"])}
    if what == "rlimit":
        import resource
        now = int(open("/proc/self/statm").read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (now + (64 << 20), resource.RLIM_INFINITY))
        return {"allocated": allocate(data["megabytes"])}
    if what == "fork":
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        return {"child": child, "pid": os.getpid()}
    if what == "print":
        print(data["text"])
        print(data["text"], file=sys.stderr)
    if what == "big":
        return "x" * data["size"]
    return {"pid": os.getpid(), "echo": data.get("echo")}


def predict(data, model=load_model()):
    if isinstance(data, bytes):
        return {"bytes": len(data)}
    if isinstance(data, dict):
        if "note" in data:
            with open(str(CALLS), "a") as calls:
                calls.write(str(data["note"]) + "\\\\n")
        return do(data)
    return {"rows": len(data)}
'''.replace("\\\\n", "\\n")
