"""A client of the Debug Adapter Protocol, for gdb's own adapter.

dap.py GDB CONFIGURATION: attaches as a launch.json's CONFIGURATION (JSON) says, sets a breakpoint on
vfs_read, runs to it, and prints as JSON what an editor would show.
"""

import atexit
import json
import subprocess
import sys
import threading

PATIENCE = 120

gdb, configuration = sys.argv[1], json.loads(sys.argv[2])
adapter = subprocess.Popen(
    [gdb, "-nx", "-q", "-i", "dap", *configuration.get("debuggerArgs", [])],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
)
# No wait is for ever: without its adapter, a read ends.
watchdog = threading.Timer(PATIENCE, adapter.kill)
watchdog.daemon = True
watchdog.start()
atexit.register(adapter.kill)
sequence = 0
events = []


def send(command, arguments=None):
    global sequence
    sequence += 1
    body = {"seq": sequence, "type": "request", "command": command, "arguments": arguments or {}}
    text = json.dumps(body).encode()
    adapter.stdin.write(b"Content-Length: %d\r\n\r\n" % len(text) + text)
    adapter.stdin.flush()
    return sequence


def receive():
    length = None
    while True:
        line = adapter.stdout.readline()
        if not line:
            sys.exit("the adapter has ended; last: %s" % json.dumps(events[-5:]))
        line = line.strip()
        if not line and length is not None:
            break
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    message = json.loads(adapter.stdout.read(length))
    if message["type"] == "event":
        events.append(message)
    return message


def answer(request):
    while True:
        message = receive()
        if message["type"] == "response" and message["request_seq"] == request:
            if not message["success"]:
                sys.exit("%s: %s" % (message["command"], json.dumps(message)))
            return message.get("body")


def ask(command, arguments=None):
    return answer(send(command, arguments))


def await_event(name, past=0):
    while True:
        for event in events[past:]:
            if event["event"] == name:
                return event.get("body")
        receive()


capabilities = ask("initialize", {"clientID": "test", "adapterID": "gdb", "linesStartAt1": True})
keys = ("program", "target", "pid")
attach = send("attach", {key: configuration[key] for key in keys if key in configuration})
await_event("initialized")
ask("setFunctionBreakpoints", {"breakpoints": [{"name": "vfs_read"}]})
ask("configurationDone")
answer(attach)
# The guest was stopped to be attached to.
threads = ask("threads")["threads"]
past = len(events)
ask("continue", {"threadId": threads[0]["id"]})
stopped = await_event("stopped", past)
stack = ask("stackTrace", {"threadId": stopped["threadId"]})["stackFrames"]
scopes = ask("scopes", {"frameId": stack[0]["id"]})["scopes"]
arguments = ask("variables", {"variablesReference": scopes[0]["variablesReference"]})["variables"]
past = len(events)
ask("next", {"threadId": stopped["threadId"]})
stepped = await_event("stopped", past)
# Frames are new ones after each stop.
frame = ask("stackTrace", {"threadId": stopped["threadId"]})["stackFrames"][0]["id"]
expression = {"expression": "init_task.pid + 6 * 7", "frameId": frame, "context": "watch"}
evaluated = ask("evaluate", expression)
verified = [event["body"]["breakpoint"] for event in events if event["event"] == "breakpoint"]
ask("setFunctionBreakpoints", {"breakpoints": []})
result = {
    "breakpoints": verified,
    "threads": [thread["name"] for thread in threads],
    "stopped": stopped,
    "stack": [frame["name"] for frame in stack],
    "line": stack[0].get("line"),
    "source": stack[0].get("source", {}).get("path"),
    "arguments": [argument["name"] for argument in arguments],
    "stepped": stepped["reason"],
    "evaluated": evaluated["result"],
}
ask("disconnect", {"terminateDebuggee": False})
watchdog.cancel()
adapter.wait(PATIENCE)
print(json.dumps(result))
