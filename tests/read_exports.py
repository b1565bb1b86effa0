"""read_exports.py SAFETENSORS NPZ: reads both as other programs do, by their formats' rules alone; they must hold the same."""

import json
import struct
import sys

import numpy

with open(sys.argv[1], "rb") as file:
    (length,) = struct.unpack("<Q", file.read(8))
    header = json.loads(file.read(length))
    data = file.read()
header.pop("__metadata__", None)
arrays = numpy.load(sys.argv[2], allow_pickle=False)
assert sorted(arrays.files) == sorted(header), (arrays.files, header)
end = 0
for name, tensor in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
    begin, behind = tensor["data_offsets"]
    assert begin == end, f"{name} does not begin where the one before ends"
    kind = {"F32": "<f4", "U64": "<u8"}[tensor["dtype"]]
    values = numpy.frombuffer(data[begin:behind], dtype=kind).reshape(tensor["shape"])
    array = arrays[name]
    assert array.dtype == values.dtype and array.shape == values.shape, (name, array.dtype, array.shape)
    assert array.tobytes() == values.tobytes(), name
    end = behind
    print(name, tensor["dtype"], *array.shape, "some" if array.any() else "zeros")
assert end == len(data)
