"""What an offline run of W&B holds, by W&B's own messages. In: {"path"}; out: config and history."""
import json
import struct
import sys

from wandb.proto import wandb_internal_pb2 as messages

BLOCK = 32768


def records(data):
    """The records of a LevelDB log after W&B's header of 7 bytes; long ones come in parts."""
    at, parts = 7, []
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        parts.append(data[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield messages.Record.FromString(b"".join(parts))
            parts = []


request = json.load(sys.stdin)
answer = {"config": {}, "history": []}
for record in records(open(request["path"], "rb").read()):
    if record.HasField("run"):
        answer |= {"project": record.run.project, "name": record.run.display_name, "id": record.run.run_id}
        for item in record.run.config.update:
            answer["config"][item.key] = json.loads(item.value_json)
    if record.HasField("history"):
        items = record.history.item
        answer["history"].append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
json.dump(answer, sys.stdout)
