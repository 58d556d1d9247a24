"""The parts of scripts/shoal.py that need no node. `python3 -m unittest discover test/python`."""

import io
import json
import math
import os
import struct
import sys
import tempfile
import unittest
from array import array

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "..", "scripts"))
import shoal  # noqa: E402

try:
    import numpy
except ImportError:
    numpy = None
try:
    import torch
except ImportError:
    torch = None

needs_numpy = unittest.skipIf(numpy is None, "numpy is not installed")
needs_torch = unittest.skipIf(torch is None, "torch is not installed")


def file_of(tensors, shapes=None):
    length, pieces = shoal.save(tensors, shapes)
    content = b"".join(bytes(piece) for piece in pieces)
    assert len(content) == length
    return content


class Safetensors(unittest.TestCase):
    def test_is_the_published_format(self):
        content = file_of({"a": array("f", [1, 2]), "b": array("f", [3])}, {"a": [2, 1]})
        (length,) = struct.unpack("<Q", content[:8])
        self.assertEqual(length % 8, 0)
        self.assertEqual(
            json.loads(content[8 : 8 + length]),
            {
                "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
                "b": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
            },
        )
        self.assertEqual(content[8 + length :], struct.pack("<3f", 1, 2, 3))

    def test_comes_back(self):
        tensors = {"x": array("f", [0.5, -2, math.pi]), "empty name": array("f", [7])}
        read = shoal.load(io.BytesIO(file_of(tensors)))
        self.assertEqual(list(read), ["x", "empty name"])
        self.assertEqual([list(values) for values in read.values()], [list(v) for v in tensors.values()])

    def test_fills_what_it_is_given_and_leaves_the_rest(self):
        into = {"x": array("f", [9, 9]), "other": array("f", [5])}
        read = shoal.load(io.BytesIO(file_of({"x": array("f", [1, 2])})), into)
        self.assertIs(read["x"], into["x"])
        self.assertEqual(list(into["x"]), [1, 2])
        self.assertEqual(list(into["other"]), [5])
        self.assertNotIn("other", read)

    def test_pieces_of_a_large_tensor_are_small(self):
        values = array("f", bytes(4 * 600_000))
        length, pieces = shoal.save({"large": values})
        sizes = [len(piece) for piece in pieces]
        self.assertEqual(sum(sizes), length)
        self.assertLessEqual(max(sizes), shoal.CHUNK_BYTES)

    def test_refuses_what_does_not_fit(self):
        content = file_of({"x": array("f", [1, 2])})
        with self.assertRaises(shoal.Fault) as caught:
            shoal.load(io.BytesIO(content), {"x": array("f", [1, 2, 3])})
        self.assertEqual(caught.exception.code, "schema_mismatch")
        with self.assertRaises(Exception):
            shoal.load(io.BytesIO(content[:-1]))
        with self.assertRaises(shoal.Fault):
            shoal.load(io.BytesIO(content.replace(b"F32", b"F16")))
        with self.assertRaises(shoal.Fault):
            shoal.load(io.BytesIO(b"\xff" * 100))

    @needs_numpy
    def test_numpy_of_any_layout_and_type(self):
        tensors = {
            "c": numpy.arange(6, dtype=numpy.float32).reshape(2, 3),
            "fortran": numpy.asfortranarray(numpy.arange(6, dtype=numpy.float32).reshape(2, 3)),
            "float64": numpy.linspace(0, 1, 4),
            "strided": numpy.arange(10, dtype=numpy.float32)[::2],
            "big endian": numpy.arange(3, dtype=">f4"),
            "scalar": numpy.float32(3) * numpy.ones(()),
        }
        content = file_of(tensors)
        read = shoal.load(io.BytesIO(content))
        for name, tensor in tensors.items():
            self.assertEqual(read[name].shape, tensor.shape)
            numpy.testing.assert_allclose(read[name], tensor, rtol=1e-7)
        into = {name: numpy.zeros_like(tensor) for name, tensor in tensors.items()}
        shoal.load(io.BytesIO(content), into)
        for name, tensor in tensors.items():
            numpy.testing.assert_allclose(into[name], tensor, rtol=1e-7)

    @needs_torch
    def test_torch_modules_in_place(self):
        model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2)).half()
        content = file_of(model.state_dict())
        other = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
        shoal.load(io.BytesIO(content), other.state_dict())
        for ours, theirs in zip(other.parameters(), model.parameters()):
            self.assertTrue(torch.equal(ours, theirs.float()))
        turned = {"0.weight": torch.zeros(3, 2).t(), "0.bias": torch.zeros(2, dtype=torch.float64)}
        shoal.load(io.BytesIO(content), turned)
        self.assertTrue(torch.equal(turned["0.weight"], model[0].weight.float()))
        self.assertTrue(torch.equal(turned["0.bias"], model[0].bias.double()))


class SchemaHash(unittest.TestCase):
    def test_is_that_of_the_node(self):
        # From schemaHash() of src/tensor/schema.ts; the vitest suite compares them too.
        path = os.path.join(os.path.dirname(__file__), "schema-hashes.json")
        with open(path, encoding="utf-8") as file:
            for case in json.load(file):
                tensors = [(name, shape) for name, shape in case["tensors"]]
                self.assertEqual(shoal.schema_hash(tensors), case["hash"])


class Events(unittest.TestCase):
    def test_frames(self):
        lines = io.BytesIO(
            b"retry: 1000\nid: a-0\n\n: heartbeat\n\nid: a-1\ndata: {\"x\": 1}\n\n"
            b"event: gap\ndata: {\"missed\": 3}\n\nid: a-2\r\ndata: 1\r\ndata: 2\r\n\r\n"
        )
        self.assertEqual(
            list(shoal.read_events(lines)),
            [
                ("a-0", None, ""),
                ("a-1", None, '{"x": 1}'),
                (None, "gap", '{"missed": 3}'),
                ("a-2", None, "1\n2"),
            ],
        )


class Folder(unittest.TestCase):
    def setUp(self):
        self.environment = dict(os.environ)

    def tearDown(self):
        os.environ.clear()
        os.environ.update(self.environment)

    def test_is_where_the_daemon_has_it(self):
        os.environ["SHOAL_DATA_DIR"] = "/somewhere"
        self.assertEqual(shoal.data_folder(), "/somewhere")
        del os.environ["SHOAL_DATA_DIR"]
        os.environ["XDG_DATA_HOME"] = "/data"
        self.assertEqual(shoal.data_folder(), "/data/shoal")
        os.environ["XDG_DATA_HOME"] = "relative"
        self.assertEqual(shoal.data_folder(), os.path.expanduser("~/.local/share/shoal"))

    def test_without_a_node_says_so(self):
        with tempfile.TemporaryDirectory() as folder:
            with self.assertRaises(shoal.Fault) as caught:
                shoal.Node(folder, patience=0).status()
        self.assertEqual(caught.exception.code, "daemon_unreachable")
        self.assertIn("shoal daemon", str(caught.exception))


if __name__ == "__main__":
    unittest.main()
