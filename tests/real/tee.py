# Stands between a gateway and a stdio server and writes down every line of both: tee.py FOLDER COMMAND [ARGUMENT ...]
"""Each process gets a file of its own in FOLDER, one JSON object {"from": "gateway"|"server", "line": ...} a line."""

import json
import os
import signal
import subprocess
import sys
import threading

folder, command = sys.argv[1], sys.argv[2:]
server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda number, _: server.send_signal(number))
lock = threading.Lock()
record = open(os.path.join(folder, f"{os.getpid()}.jsonl"), "w", encoding="utf-8")


def pass_on(name, source, target):
    # Noted before it is passed on, so that an answer cannot be noted before its question.
    for line in source:
        with lock:
            record.write(json.dumps({"from": name, "line": line.decode("utf-8", "replace").rstrip("\r\n")}) + "\n")
            record.flush()
        try:
            target.write(line)
            target.flush()
        except OSError:
            break
    try:
        target.close()
    except OSError:
        pass


threading.Thread(target=pass_on, args=("gateway", sys.stdin.buffer, server.stdin), daemon=True).start()
pass_on("server", server.stdout, sys.stdout.buffer)
code = server.wait()
# The thread may stand in a read of stdin for ever.
os._exit(code if code >= 0 else 128 - code)
