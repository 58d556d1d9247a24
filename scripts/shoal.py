"""The local API of a Shoal node, for scripts. Needs the standard library only; takes numpy arrays and torch tensors.

    import shoal

    run = shoal.Node().join("shoal:…")       # the node of this user (`shoal daemon`)
    run.parameters(model)                    # the outer parameters, into a torch module or a dict of arrays
    while not run.finished:
        for step in range(run.inner_steps):
            ...                              # an inner step
            run.progress(loss, tokens)
        run.outer_step(model, tokens=..., loss=...)   # averages with the swarm; the model has the next outer parameters

A node or a script that goes away and comes back goes on where it stopped: `outer_step` may be repeated, and waits for
a node that is gone.
"""

import ctypes
import http.client
import json
import logging
import os
import sys
import threading
import time
import urllib.parse
from array import array
from collections import namedtuple
from hashlib import sha256

log = logging.getLogger("shoal")

CHUNK_BYTES = 1 << 20  # sent and received at once
CALL_SECONDS = 330  # longer than the node lets any call take
PROGRESS_SECONDS = 5  # a node takes a trainer for silent that it has not heard for three of these

Step = namedtuple("Step", "outer_step next_outer_step outcome partners consensus_distance")


class Fault(Exception):
    """What the node says went wrong: a stable `code`, a message of one line, and facts for programs."""

    def __init__(self, code, message, status=None, details=None):
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status
        self.details = details or {}


# ----------------------------------------------------------------------------------------------------------------------
# tensors: anything with memory and a shape


def _tensors_of(model):
    """A dict of tensors from a dict, or from whatever has a `state_dict`, whose tensors share the model's memory."""
    return model.state_dict() if hasattr(model, "state_dict") else model


def _is_torch(tensor):
    return type(tensor).__module__.split(".")[0] == "torch" or hasattr(tensor, "data_ptr")


def _shape(tensor):
    return list(tensor.shape) if hasattr(tensor, "shape") else [len(tensor)]


def _size(shape):
    size = 1
    for extent in shape:
        size *= extent
    return size


def _memory(tensor):
    """The float32 memory of a tensor as bytes, or None when it has none of its own that can be read in place."""
    if _is_torch(tensor):
        import torch

        plain = tensor.device.type == "cpu" and tensor.dtype == torch.float32
        if not plain or not tensor.is_contiguous():
            return None
        size = 4 * tensor.numel()
        view = (ctypes.c_char * size).from_address(tensor.data_ptr()) if size else bytearray()
        return memoryview(view).cast("B")
    try:
        view = memoryview(tensor)
    except TypeError:
        return None
    is_float32 = view.itemsize == 4 and view.format.lstrip("<=@") == "f"
    return view.cast("B") if is_float32 and view.c_contiguous else None


def _float32(tensor):
    """The values of a tensor as little-endian float32 bytes; without a copy where that is possible."""
    memory = _memory(tensor)
    if memory is not None and sys.byteorder == "little":
        return memory
    if _is_torch(tensor):
        import torch

        copied = tensor.detach().to("cpu", torch.float32).contiguous()
        return bytes(_memory(copied))  # the copy ends here
    if hasattr(tensor, "astype"):
        return memoryview(tensor.astype("<f4", order="C")).cast("B")
    values = array("f", tensor)
    if sys.byteorder == "big":
        values.byteswap()
    return memoryview(values).cast("B")


def _assign(tensor, values):
    """Writes little-endian float32 bytes into a tensor of any device and float type."""
    flat = array("f")
    flat.frombytes(values)
    if sys.byteorder == "big":
        flat.byteswap()
    if _is_torch(tensor):
        import torch

        # frombuffer shares memory; copy_ does not keep it.
        source = torch.frombuffer(flat, dtype=torch.float32) if len(flat) else torch.zeros(0)
        with torch.no_grad():
            tensor.copy_(source.view(tensor.shape))
    elif hasattr(tensor, "astype"):
        import numpy

        tensor[...] = numpy.frombuffer(flat, dtype=numpy.float32).reshape(tensor.shape)
    else:
        tensor[:] = flat


def _new_tensor(shape):
    """A numpy array of zeros; without numpy an `array` that is flat."""
    try:
        import numpy
    except ImportError:
        return array("f", bytes(4 * _size(shape)))
    return numpy.zeros(shape, dtype=numpy.float32)


# ----------------------------------------------------------------------------------------------------------------------
# safetensors: length of the header (u64), header (JSON), data (float32, little-endian)


def save(tensors, shapes=None):
    """(length, pieces) of a safetensors file of a dict of tensors. `shapes`: of tensors that are flat memory."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        shape = (shapes or {}).get(name) or _shape(tensor)
        size = 4 * _size(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    start = len(text).to_bytes(8, "little") + text
    return len(start) + end, _pieces(start, tensors.values())


def _pieces(start, tensors):
    yield start
    for tensor in tensors:
        values = _float32(tensor)
        for begin in range(0, len(values), CHUNK_BYTES):
            yield values[begin : begin + CHUNK_BYTES]


def load(file, into=None):
    """Reads a safetensors file of float32 into the tensors of the same names in `into`, else into new ones.

    Returns a dict in the order of the file. Tensors of `into` that are not in the file stay as they are.
    """
    return _load(file, into)[0]


def _load(file, into):
    """As `load`, and the shapes by name."""
    length = int.from_bytes(_read(file, 8), "little")
    if length > 100_000_000:
        raise Fault("tensors_invalid", f"a header of {length} bytes is none")
    header = json.loads(_read(file, length))
    header.pop("__metadata__", None)
    position, tensors, shapes = 0, {}, {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
        begin, end = entry["data_offsets"]
        if entry["dtype"] != "F32" or begin != position:
            raise Fault("tensors_invalid", f"tensor {name} is not float32, or there are gaps")
        tensor = (into or {}).get(name)
        if tensor is None:
            tensor = _new_tensor(entry["shape"])
        elif _shape(tensor) != entry["shape"] and _shape(tensor) != [_size(entry["shape"])]:
            raise Fault("schema_mismatch", f"tensor {name} is {_shape(tensor)}, not {entry['shape']}")
        memory = _memory(tensor)
        if memory is not None and not memory.readonly and sys.byteorder == "little":
            _read_into(file, memory)
        else:
            _assign(tensor, _read(file, end - begin))
        tensors[name] = tensor
        shapes[name] = entry["shape"]
        position = end
    return tensors, shapes


def _read(file, size):
    buffer = bytearray(size)
    _read_into(file, memoryview(buffer))
    return buffer


def _read_into(file, memory):
    done = 0
    while done < len(memory):
        count = file.readinto(memory[done : done + CHUNK_BYTES])
        if not count:
            raise http.client.IncompleteRead(b"", len(memory) - done)
        done += count


def schema_hash(tensors):
    """sha-256 over names and shapes in order, as in the manifest: only peers with equal ones average."""
    parts = [part for name, shape in tensors for part in (name, "x".join(map(str, shape)))]
    units = lambda text: len(text.encode("utf-16-le")) // 2
    return sha256("".join(f"{units(part)}:{part}" for part in parts).encode()).hexdigest()


# ----------------------------------------------------------------------------------------------------------------------
# the node


def data_folder():
    """Where this user's node keeps its data, as `shoal daemon` chooses it."""
    if os.environ.get("SHOAL_DATA_DIR"):
        return os.environ["SHOAL_DATA_DIR"]
    if sys.platform == "win32":
        return os.path.join(os.environ.get("LOCALAPPDATA", os.path.expanduser("~")), "shoal")
    xdg = os.environ.get("XDG_DATA_HOME", "")
    base = xdg if os.path.isabs(xdg) else os.path.expanduser("~/.local/share")
    return os.path.join(base, "shoal")


class Node:
    """The node that owns a data folder. Every call waits `patience` seconds for one that is gone."""

    def __init__(self, data_dir="", patience=600):
        self.data_dir = data_dir or data_folder()
        self.patience = patience

    def status(self):
        return self.request("GET", "/v1/node")

    def peers(self):
        return self.request("GET", "/v1/peers")["peers"]

    def connect(self, address):
        return self.request("POST", "/v1/peers", {"address": address})["peer"]

    def runs(self, discover=False):
        return self.request("GET", "/v1/runs", query={"discover": str(discover).lower()})["runs"]

    def run(self, run_id):
        """A run that this node takes part in already."""
        return Run(self, run_id)

    def join(self, link, data=None, trainer="outside"):
        """Takes part in a run, named by its id or link, as its trainer; in one it is in already it simply goes on."""
        body = {"run": link, "trainer": trainer, **({"data": os.path.abspath(data)} if data else {})}
        return Run(self, self.request("POST", "/v1/runs/join", body)["id"])

    def create(self, spec, parameters=None, trainer="outside"):
        """Creates a run. `parameters`: what a model that only this script knows starts from.

        Only these tensors are averaged: those of adapters alone make a run that leaves the base model to each peer.
        """
        spec = dict(spec)
        if "data" in spec:
            spec["data"] = os.path.abspath(spec["data"])
        uploaded = None
        if parameters is not None:
            uploaded = self.put_tensors(parameters)
            spec.update({"model": {"kind": "external"}, "from": uploaded})
        try:
            body = {"spec": spec, "trainer": trainer}
            return Run(self, self.request("POST", "/v1/runs", body)["id"])
        finally:
            if uploaded is not None:
                self.forget(uploaded)  # the run has its own copy

    # blobs ---------------------------------------------------------------------------------------

    def put(self, content):
        """Keeps bytes and returns their CID."""
        return self.request("PUT", "/v1/blobs", body=[content], length=len(content))["cid"]

    def put_tensors(self, model):
        length, body = save(_tensors_of(model))
        return self.request("PUT", "/v1/blobs", body=body, length=length)["cid"]

    def get(self, cid):
        """The bytes of a CID, from this node or from the peers that have it."""
        with self.open("GET", f"/v1/blobs/{cid}") as response:
            return response.read()

    def provide(self, cid):
        """Keeps a blob and announces it, in the background: others may find it some seconds later."""
        return self.request("POST", f"/v1/blobs/{cid}/provide", {})

    def providers(self, cid):
        return self.request("GET", f"/v1/blobs/{cid}/providers")["peers"]

    def forget(self, cid):
        self.request("DELETE", f"/v1/blobs/{cid}")

    # services ------------------------------------------------------------------------------------

    def call(self, peer, service, request=b""):
        """Calls what a script beside another peer serves, and returns its reply."""
        path = f"/v1/peers/{peer}/call/{service}"
        with self.open("POST", path, body=[request], length=len(request), patient=False) as response:
            return response.read()

    def serve(self, service, handler):
        """Answers calls with `handler(request, peer) -> bytes`, one after the other, until it raises something."""
        path = f"/v1/services/{service}/requests"
        while True:
            with self.open("GET", path) as response:
                if response.status == 204:
                    continue
                request_id, peer = response.headers["request-id"], response.headers["peer"]
                request = response.read()
            try:
                reply = handler(request, peer)
            except Fault as fault:
                body = {"message": fault.message}
                self.request("POST", f"{path}/{request_id}/refuse", body)
                continue
            self.request("POST", f"{path}/{request_id}/reply", body=[reply], length=len(reply))

    # averages ------------------------------------------------------------------------------------

    def average(
        self, group, model, round, weight=1, min_peers=2, wait_seconds=60, codec="fp32", group_size=None
    ):
        """Gives tensors to a round of a group and replaces them by the mean of all; returns whose it is.

        With a group_size the peers average in smaller groups, drawn anew in every round.
        """
        tensors = _tensors_of(model)
        length, body = save(tensors)
        headers = {
            "Round": round,
            "Weight": weight,
            "Min-Peers": min_peers,
            "Wait-Ms": int(1000 * wait_seconds),
            "Codec": codec,
        }
        if group_size is not None:
            headers["Group-Size"] = group_size
        path = f"/v1/average/{urllib.parse.quote(group, safe='')}"
        with self.open("POST", path, body=body, length=length, headers=headers) as response:
            load(response, tensors)
            return response.headers["peers"].split(",")

    # events --------------------------------------------------------------------------------------

    def events(self):
        """Events of the node from now on, as dicts; a connection that breaks is taken up where it broke."""
        last = None
        while True:
            headers = {} if last is None else {"Last-Event-ID": last}
            try:
                with self.open("GET", "/v1/events", headers=headers) as response:
                    for event_id, name, data in read_events(response):
                        last = event_id or last
                        if data and name is None:
                            yield json.loads(data)
            except (OSError, http.client.HTTPException):
                time.sleep(1)

    # HTTP ----------------------------------------------------------------------------------------

    def request(self, method, path, json_body=None, **options):
        """A call that answers with JSON."""
        with self.open(method, path, json_body, **options) as response:
            return json.loads(response.read())

    def open(
        self,
        method,
        path,
        json_body=None,
        query=None,
        body=None,
        length=None,
        headers=None,
        patient=True,
    ):
        """The response of a call that succeeded. Raises `Fault`; when `patient`, waits for a node that is gone.

        `body` is an iterable of bytes, `length` in all. A call that breaks off is not repeated here.
        """
        if query:
            path = f"{path}?{urllib.parse.urlencode(query)}"
        sent = {"Content-Type": "application/json"} if method in ("POST", "PUT") else {}
        if body is not None:
            sent = {"Content-Type": "application/octet-stream", "Content-Length": str(length)}
        elif json_body is not None:
            body = [json.dumps(json_body).encode()]
            sent["Content-Length"] = str(len(body[0]))
        sent.update({name: str(value) for name, value in (headers or {}).items()})
        connection, token = self._connect(patient)
        sent["Authorization"] = f"Bearer {token}"
        try:
            try:
                connection.request(method, path, body=_joined(body), headers=sent)
            except (BrokenPipeError, ConnectionResetError) as broken:
                # A node that refuses a large body answers before it has all of it.
                response = _answer_after(connection, broken)
            else:
                response = connection.getresponse()
            if response.status < 300:
                response.keeps = connection  # each call has its own, which goes with its response
                return response
            raise _fault_of(response)
        except BaseException:
            connection.close()
            raise

    def _connect(self, patient):
        deadline = time.monotonic() + (self.patience if patient else 0)
        told = False
        while True:
            try:
                with open(os.path.join(self.data_dir, "api.json")) as file:
                    url = urllib.parse.urlsplit(json.load(file)["url"])
                with open(os.path.join(self.data_dir, "api-token")) as file:
                    token = file.read().strip()
                connection = http.client.HTTPConnection(url.hostname, url.port, timeout=CALL_SECONDS)
                connection.connect()
                return connection, token
            except (OSError, ValueError, KeyError) as cause:
                if time.monotonic() >= deadline:
                    message = f"no node answers on {self.data_dir}: start one with `shoal daemon`"
                    raise Fault("daemon_unreachable", message) from cause
                if not told:
                    log.warning("no node answers on %s: waiting for it", self.data_dir)
                    told = True
                time.sleep(0.5)


def _joined(body):
    return body[0] if isinstance(body, list) and len(body) == 1 else body


def _answer_after(connection, broken):
    try:
        return connection.getresponse()
    except (OSError, http.client.HTTPException):
        raise broken from None


def _fault_of(response):
    try:
        problem = json.loads(response.read())
        return Fault(problem["code"], problem["detail"], response.status, problem.get("details"))
    except (ValueError, KeyError):
        return Fault("internal", f"unexpected answer of the node: HTTP {response.status}")


def read_events(lines):
    """(id, event, data) of each frame of a stream of server-sent events."""
    event_id, name, data = None, None, []
    for line in lines:
        field, _, value = line.decode().rstrip("\r\n").partition(":")
        value = value[1:] if value.startswith(" ") else value
        if field == "id":
            event_id = value
        elif field == "event":
            name = value
        elif field == "data":
            data.append(value)
        elif not field and not value and (event_id or data):
            yield event_id, name, "\n".join(data)
            event_id, name, data = None, None, []


# ----------------------------------------------------------------------------------------------------------------------
# a run whose inner steps this script does


class Run:
    """A run of a node. `step` is the outer step that starts from the parameters the script has."""

    def __init__(self, node, run_id):
        self.node = node
        self.id = run_id
        self.manifest = node.request("GET", f"/v1/runs/{run_id}/manifest")
        self.inner_steps = self.manifest["innerSteps"]
        self.outer_steps = self.manifest["outerSteps"]
        self.step = 0
        self.shapes = {}  # by name, in the order of the run
        self._progress = _Progress(self)

    @property
    def finished(self):
        return self.step >= self.outer_steps

    def view(self):
        """State of the run: status, loss, members, rounds …"""
        return self.node.request("GET", f"/v1/runs/{self.id}")

    def members(self):
        return self.node.request("GET", f"/v1/runs/{self.id}/peers")["peers"]

    def invite(self):
        return self.node.request("GET", f"/v1/runs/{self.id}/invite")["link"]

    def leave(self):
        self._progress.stop()
        self.node.request("POST", f"/v1/runs/{self.id}/leave", {})

    def events(self):
        return (event for event in self.node.events() if event.get("run") == self.id)

    def text(self):
        """The text that the run shares; None when each peer brings its own."""
        text = (self.manifest["data"] or {}).get("text")
        return None if text is None else b"".join(self.node.get(cid) for cid in text["chunks"])

    def parameters(self, model=None):
        """The newest outer parameters: into a torch module or a dict of tensors, in place, or as a new dict."""
        into = None if model is None else _tensors_of(model)
        tensors = self._repeat(lambda: self._parameters(into))
        if schema_hash(self.shapes.items()) != self.manifest["schemaHash"]:
            raise Fault("schema_mismatch", "names and shapes are not those of the manifest")
        if not self.finished:
            self._progress.start()
        return tensors

    def _parameters(self, into):
        with self.node.open("GET", f"/v1/runs/{self.id}/parameters") as response:
            tensors, self.shapes = _load(response, into)
            self.step = int(response.headers["outer-step"])
        missing = [name for name in tensors if into is not None and name not in into]
        if missing:
            raise Fault("schema_mismatch", f"the model has no tensor {missing[0]}, the run has one")
        return tensors

    def progress(self, loss, tokens=0):
        """One inner step done, `tokens` of them since the outer parameters. True when it is time for `outer_step`."""
        return self._progress.note(float(loss), int(tokens))

    def outer_step(self, model, tokens, loss, inner_steps=None):
        """Hands in local parameters, waits for the round, and puts the next outer parameters in their place.

        `tokens` is what the contribution is weighed by, `loss` the mean over the inner steps. What goes wrong in
        between is repeated; when the run is elsewhere by now, its parameters are taken over, and the outcome is `lost`.
        """
        if not self.shapes:
            raise Fault("usage", "start with run.parameters(model)")
        tensors = _tensors_of(model)
        own = {name: tensors[name] for name in self.shapes}
        headers = {"Outer-Step": self.step, "Tokens": int(tokens), "Loss": float(loss)}
        headers["Inner-Steps"] = inner_steps or self._progress.inner_step or self.inner_steps
        try:
            result = self._repeat(lambda: self._outer_step(own, headers))
        except Fault as fault:
            if fault.code != "conflict":
                raise
            log.warning("%s; taking over its parameters", fault.message)
            lost = self.step
            self.parameters(own)
            result = Step(lost, self.step, "lost", [], None)
        self._progress.begin()
        if self.finished:
            self._progress.stop()
        return result

    def _outer_step(self, tensors, headers):
        path = f"/v1/runs/{self.id}/outer-step"
        length, body = save(tensors, self.shapes)
        with self.node.open("POST", path, body=body, length=length, headers=headers) as response:
            answer = response.headers
            load(response, tensors)
        self.step = int(answer["next-outer-step"])
        distance = answer.get("consensus-distance")
        return Step(
            int(answer["outer-step"]),
            self.step,
            answer["outcome"],
            [peer for peer in answer["partners"].split(",") if peer],
            None if distance is None else float(distance),
        )

    def wait(self):
        """Waits until the run is finished, its replicas merged; returns its state."""
        while True:
            view = self.view()
            if view["status"] == "failed":
                raise Fault(view["error"]["code"], view["error"]["message"])
            if view["status"] == "finished":
                return view
            time.sleep(0.5)

    def _repeat(self, call):
        """Calls again what was cut off by a node that went away, or that took too long: it counts once."""
        while True:
            try:
                return call()
            except (OSError, http.client.HTTPException) as cause:
                log.warning("the node broke off (%s): trying again", cause or type(cause).__name__)
            except Fault as fault:
                same = fault.code == "conflict" and fault.details.get("outerStep") == self.step
                if not same and fault.code not in ("aborted", "timeout", "run_unknown"):
                    raise
                if fault.code == "run_unknown" and not self._resumes():
                    raise
                log.warning("%s: trying again", fault.message)
            time.sleep(0.5)

    def _resumes(self):
        """Whether the node, just started, has not yet taken up its runs."""
        return self.node.status()["uptimeMs"] < 10_000


class _Progress:
    """Signs of life, sent by a thread: an inner step of a minute is no silence, a process that is gone is one."""

    def __init__(self, run):
        self.run = run
        self.inner_step, self.loss, self.tokens = 0, None, 0
        self.enough = False
        self.thread = None
        self.wake = threading.Event()
        self.stopping = False

    def start(self):
        if self.thread is None:
            self.thread = threading.Thread(target=self._live, name="shoal progress", daemon=True)
            self.thread.start()

    def begin(self):
        self.inner_step, self.loss, self.tokens, self.enough = 0, None, 0, False

    def note(self, loss, tokens):
        self.inner_step += 1
        self.loss, self.tokens = loss, tokens
        self.wake.set()
        return self.enough

    def stop(self):
        self.stopping = True
        self.wake.set()

    def _live(self):
        while not self.stopping:
            body = {"innerStep": self.inner_step}
            if self.loss is not None and self.loss == self.loss and abs(self.loss) != float("inf"):
                body.update(loss=self.loss, tokens=self.tokens)
            try:
                path = f"/v1/runs/{self.run.id}/progress"
                self.enough = self.run.node.request("POST", path, body, patient=False)["enough"]
            except (Fault, OSError, http.client.HTTPException):
                pass  # the next outer step tells
            self.wake.clear()
            self.wake.wait(PROGRESS_SECONDS)
            time.sleep(0.5)  # twice a second at most, however short the inner steps are
