"""The graph that PyTorch's exporter made of an image tower, given the head of all image graphs.

Legend: B images, S image size, D joint width, K classes.
"""

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from vlp_deploy.errors import CheckpointError
from vlp_deploy.formats.checkpoint import IMAGE_GRAPH, PromptCheckpoint
from vlp_export.graph import IR_VERSION, GraphBuilder
from vlp_export.image_graph import write_head

OTHER_TOWER = "vlp.image_tower"  # in a model's metadata: its name
OPSETS = range(18, 24)  # which engines read beside our own graphs


def write_other_graph(checkpoint: PromptCheckpoint) -> ir.Model:
    """`image`, `class_matrix`, `class_bias` → `embedding`, `logits`, of a tower that is no ViT.

    The tower, uint8 (B, 3, S, S) → L2-normalised (B, D), comes with the checkpoint. Raises
    CheckpointError if that is no such graph.
    """
    model = _parsed(checkpoint.tensors[IMAGE_GRAPH].tobytes())
    _check_interface(model)
    _forget_origin(model)
    embedding = model.graph.outputs.pop()
    graph = GraphBuilder.onto(model)
    write_head(graph, embedding, joint_width=checkpoint.header.backbone.config.embed_dim)
    finished = graph.model()
    finished.metadata_props[OTHER_TOWER] = checkpoint.header.backbone.config.image_tower
    return finished


def _parsed(content: bytes) -> ir.Model:
    try:
        proto = onnx.load_from_string(content)
    except DecodeError as error:
        raise CheckpointError(_damaged(f"is no ONNX file ({error})")) from error
    tensors = proto.graph.initializer
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors):
        raise CheckpointError(_damaged("reads its weights from another file"))
    return ir.from_proto(proto)


def _check_interface(model: ir.Model) -> None:
    """One uint8 image in, one float32 embedding out, standard operators between them."""
    inputs = [(value.name, value.dtype) for value in model.graph.inputs]
    outputs = [(value.name, value.dtype) for value in model.graph.outputs]
    expected = [("image", ir.DataType.UINT8)], [("embedding", ir.DataType.FLOAT)]
    if (inputs, outputs) != expected:
        raise CheckpointError(_damaged(f"has inputs {inputs} and outputs {outputs}"))
    opsets = model.graph.opset_imports
    if (
        model.functions
        or set(opsets) != {""}
        or opsets[""] not in OPSETS
        or model.ir_version > IR_VERSION
    ):
        raise CheckpointError(_damaged(f"is written in {opsets}, ONNX format {model.ir_version}"))


def _damaged(found: str) -> str:
    return (
        f"prompt checkpoint: {IMAGE_GRAPH} {found}; expected the graph of an image tower as "
        "`vlp train` and `vlp import` write it. Train or import it again"
    )


def _forget_origin(model: ir.Model) -> None:
    """Drop the lines of code, with their paths, that every node came from.

    And what is known of values in between: a rewrite in another precision would make it untrue.
    """
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            value.type = value.shape = None
