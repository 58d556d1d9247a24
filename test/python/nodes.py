"""scripts/shoal.py against two running nodes: `SHOAL_TEST_NODES=FOLDER:FOLDER python3 test/python/nodes.py`.

Standard library only, so that it runs wherever Python does.
"""

import os
import sys
import threading
import unittest
from array import array
from concurrent.futures import Future

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "..", "scripts"))
import shoal  # noqa: E402

FOLDERS = os.environ["SHOAL_TEST_NODES"].split(os.pathsep)
TARGET = [3.0, -1.0, 0.5, 2.0]


class Stop(Exception):
    pass


def background(work, *arguments):
    """A future of work in a thread that does not outlive the tests."""
    future = Future()

    def run():
        try:
            future.set_result(work(*arguments))
        except Exception as fault:
            future.set_exception(fault)

    threading.Thread(target=run, daemon=True).start()
    return future


class Nodes(unittest.TestCase):
    def setUp(self):
        self.one, self.two = (shoal.Node(folder, patience=5) for folder in FOLDERS)
        self.ids = [node.status()["peerId"] for node in (self.one, self.two)]

    def test_blobs(self):
        content = bytes(range(256)) * 10_000
        cid = self.one.put(content)
        self.assertEqual(self.two.get(cid), content)
        self.assertEqual(self.two.provide(cid)["bytes"], len(content))
        self.one.forget(cid)
        self.assertEqual(self.one.get(cid), content)
        with self.assertRaises(shoal.Fault) as caught:
            self.one.forget(cid)
        self.assertEqual(caught.exception.code, "not_found")

    def test_services(self):
        def shout(request, peer):
            if request == b"stop":
                raise Stop
            if not request:
                raise shoal.Fault("refused", "say something")
            return request.upper() + b" from " + peer.encode()

        serving = background(self.one.serve, "shout", shout)
        while True:
            try:
                reply = self.two.call(self.ids[0], "shout", b"hello")
                break
            except shoal.Fault as fault:  # until the service is offered
                self.assertIn("offers no service", fault.message)
        self.assertEqual(reply, b"HELLO from " + self.ids[1].encode())
        with self.assertRaises(shoal.Fault) as caught:
            self.two.call(self.ids[0], "shout")
        self.assertEqual(caught.exception.message, "say something")
        background(self.two.call, self.ids[0], "shout", b"stop")  # which nobody answers
        with self.assertRaises(Stop):
            serving.result()

    def test_average(self):
        def give(node, values):
            tensors = {"x": array("f", values)}
            peers = node.average("python", tensors, round=1)
            return sorted(peers), list(tensors["x"])

        other = background(give, self.two, [3, 4])
        mine = give(self.one, [1, 2])
        self.assertEqual(mine, (sorted(self.ids), [2.0, 3.0]))
        self.assertEqual(other.result(), mine)

    def test_a_model_of_its_own(self):
        """Two scripts find the minimum of a parabola together; events tell of it."""
        started = {"x": array("f", [0, 0, 0, 0])}
        spec = {
            "name": "parabola",
            "innerSteps": 5,
            "outerSteps": 4,
            "averaging": {"rule": "diloco", "momentum": 0, "learningRate": 1, "pseudoGradientCodec": "fp32"},
            "limits": {"minPeers": 2, "roundTimeoutMs": 20_000},
        }
        run = self.one.create(spec, parameters=started)
        seen, listening = [], threading.Event()

        def listen():
            events = run.events()
            listening.set()
            for event in events:
                seen.append(event)
                if event["type"] == "run_status" and event["status"] == "finished":
                    return

        follower = background(listen)
        listening.wait()
        other = background(self.train, self.two.join(run.invite()), 1)
        outcomes, mine = self.train(run, -1)
        self.assertEqual((outcomes, mine), other.result())
        self.assertEqual(outcomes, ["averaged"] * 4)
        for value, target in zip(mine, TARGET):
            self.assertAlmostEqual(value, target, places=1)
        self.assertEqual(run.wait()["tokens"], 20)
        self.assertEqual({member["peer"] for member in run.members()}, set(self.ids))
        follower.result()
        self.assertEqual([event["type"] for event in seen].count("outer_step"), 4)

    def train(self, run, bias):
        """Gradient descent whose data are off by `bias`: only the average finds the target."""
        model = run.parameters({"x": array("f", [9, 9, 9, 9])})
        outcomes = []
        while not run.finished:
            for step in range(run.inner_steps):
                loss = 0.0
                for i, target in enumerate(TARGET):
                    error = model["x"][i] - target - bias
                    model["x"][i] -= 0.4 * error
                    loss += error * error
                run.progress(loss, step + 1)
            result = run.outer_step(model, tokens=run.inner_steps, loss=loss)
            outcomes.append(result.outcome)
        run.wait()
        return outcomes, list(run.parameters(model)["x"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
