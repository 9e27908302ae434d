"""The messages of the open inference protocol's gRPC service, made from a table.

The protocol is a public interface (package `inference`, service `GRPCInferenceService`): names, numbers and types below
are its own, and a test compares them with those of Triton's client. Made at run time, in a pool of their own, they need
no generated code, which is bound to a version of protobuf and may be there only once a process.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

# A message a paragraph: its name, then fields "name number type". "*": repeated; "?": one of a choice;
# "map": from string to that type. A name with a dot is inside of another message.
TABLE = """
ServerLiveRequest
ServerLiveResponse
  live 1 bool
ServerReadyRequest
ServerReadyResponse
  ready 1 bool
ModelReadyRequest
  name 1 string
  version 2 string
ModelReadyResponse
  ready 1 bool
ServerMetadataRequest
ServerMetadataResponse
  name 1 string
  version 2 string
  extensions 3 *string
ModelMetadataRequest
  name 1 string
  version 2 string
ModelMetadataResponse
  name 1 string
  versions 2 *string
  platform 3 string
  inputs 4 *ModelMetadataResponse.TensorMetadata
  outputs 5 *ModelMetadataResponse.TensorMetadata
ModelMetadataResponse.TensorMetadata
  name 1 string
  datatype 2 string
  shape 3 *int64
InferParameter
  bool_param 1 ?bool
  int64_param 2 ?int64
  string_param 3 ?string
  double_param 4 ?double
  uint64_param 5 ?uint64
InferTensorContents
  bool_contents 1 *bool
  int_contents 2 *int32
  int64_contents 3 *int64
  uint_contents 4 *uint32
  uint64_contents 5 *uint64
  fp32_contents 6 *float
  fp64_contents 7 *double
  bytes_contents 8 *bytes
ModelInferRequest
  model_name 1 string
  model_version 2 string
  id 3 string
  parameters 4 map InferParameter
  inputs 5 *ModelInferRequest.InferInputTensor
  outputs 6 *ModelInferRequest.InferRequestedOutputTensor
  raw_input_contents 7 *bytes
ModelInferRequest.InferInputTensor
  name 1 string
  datatype 2 string
  shape 3 *int64
  parameters 4 map InferParameter
  contents 5 InferTensorContents
ModelInferRequest.InferRequestedOutputTensor
  name 1 string
  parameters 2 map InferParameter
ModelInferResponse
  model_name 1 string
  model_version 2 string
  id 3 string
  parameters 4 map InferParameter
  outputs 5 *ModelInferResponse.InferOutputTensor
  raw_output_contents 6 *bytes
ModelInferResponse.InferOutputTensor
  name 1 string
  datatype 2 string
  shape 3 *int64
  parameters 4 map InferParameter
  contents 5 InferTensorContents
"""
CALLS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
Field = descriptor_pb2.FieldDescriptorProto


def file_descriptor() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="open_inference.proto", package=PACKAGE, syntax="proto3")
    made: dict[str, Any] = {}
    for line in TABLE.strip().splitlines():
        if not line.startswith(" "):
            outer, _, name = line.rpartition(".")
            made[line] = (made[outer].nested_type if outer else file.message_type).add(name=name)
            current = line
            continue
        name, number, *kind = line.split()
        add_field(made[current], current, name, int(number), " ".join(kind))
    return file


def add_field(message: Any, path: str, name: str, number: int, kind: str) -> None:
    field = message.field.add(name=name, number=number, label=Field.LABEL_OPTIONAL)
    if kind.startswith("map "):
        entry = message.nested_type.add(name="".join(part.capitalize() for part in name.split("_")) + "Entry")
        entry.options.map_entry = True
        add_field(entry, "", "key", 1, "string")
        add_field(entry, "", "value", 2, kind.removeprefix("map "))
        kind = f"*{path}.{entry.name}"
    if kind.startswith("?"):
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
    if kind.startswith("*"):
        field.label = Field.LABEL_REPEATED
    kind = kind.lstrip("*?")
    if kind[0].isupper():
        field.type, field.type_name = Field.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
    else:
        field.type = getattr(Field, f"TYPE_{kind.upper()}")


POOL = descriptor_pool.DescriptorPool()
POOL.Add(file_descriptor())


def message(name: str) -> Any:
    """The class of a message, such as ModelInferRequest."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))
