"""Reads what our benches print."""

import pathlib
import re

UNITS = {"ns": 1e-6, "µs": 1e-3, "us": 1e-3, "ms": 1.0, "s": 1e3}
ROW = re.compile(r"^(?P<lead>[│ ]*[├╰]─ )(?P<name>.*?)(?:\s{2,}|\s+(?=│)|\s*$)(?P<rest>.*)$")
TIME = re.compile(r"([\d.]+) (ns|µs|us|ms|s)\b")


def milliseconds(path):
    """{"file/bench/argument": median milliseconds} of one run, the file without threads and ending."""
    file = pathlib.Path(path).name.split(".")[0]
    times, stack = {}, []
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            row = ROW.match(line.rstrip("\n"))
            if not row:
                continue
            depth = len(row["lead"]) // 3
            name, rest = row["name"].strip(), row["rest"]
            del stack[depth - 1 :]
            stack.append(name)
            columns = rest.split("│")
            if len(columns) >= 3 and (median := TIME.search(columns[2])):
                times["/".join([file, *stack])] = float(median[1]) * UNITS[median[2]]
    return times


TURN = re.compile(
    r"^(?P<name>\S+) +(?P<work>[\d.]+) ms +limit +(?P<limit>[\d.]+) ms +(?P<ratio>[\d.]+)x +again +(?P<again>[\d.]+) ms$"
)


def turns(path):
    """{"file/work": (milliseconds, those of the limit, median quotient, milliseconds when repeated)} of the bench that measures both in turns."""
    file = pathlib.Path(path).name.split(".")[0]
    with open(path, encoding="utf-8") as lines:
        found = [row for line in lines if (row := TURN.match(line.rstrip("\n")))]
    return {f"{file}/{row['name']}": tuple(float(row[part]) for part in ("work", "limit", "ratio", "again")) for row in found}
