"""A trained network of somebody else's: the ResNets of akamaster/pytorch_resnet_cifar10 on CIFAR-10's own images."""

import jax
import numpy as np
import pytest
from flax import nnx

import uimjax as uj
from uimjax.models.classifiers import classifier_task
from uimjax.models.resnets import ResNet, ResNetShape

MEAN, SCALE = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def name_of(path):
    """What an array of ours is called there."""
    if path[0] == "head":
        return f"linear.{'weight' if path[1] == 'kernel' else 'bias'}"
    at, number = ("", 1) if path[0] == "stem" else (f"layer{path[1] + 1}.{path[2]}.", path[4] + 1)
    return f"{at}conv{number}.weight" if path[-2] == "conv" else f"{at}bn{number}.{NORM[path[-1]]}"


def network(file, depth):
    choice = ResNetShape(10, 3, 16, (16, 32, 64), (depth,) * 3, bottleneck=False, stem="small", shortcut="pad")
    graph, state = nnx.split(ResNet(choice, nnx.Rngs(0)))
    held, taken = np.load(file), []
    for path, leaf in nnx.to_flat_state(state):
        x = held[name_of(path)]
        taken.append((path, leaf.replace(x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T)))
    module = nnx.merge(graph, nnx.from_flat_state(taken))
    assert {name_of(path) for path, _ in taken} == set(held)
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    return classifier_task(graph, rest), params


@pytest.mark.parametrize(("file", "depth"), [("resnet20-12fca82f.npz", 3), ("resnet56-4bfd9763.npz", 9)])
def test_a_trained_network_knows_its_own_training_images(file, depth, reference_data):
    image = pytest.importorskip("PIL.Image", reason="pictures take Pillow, an extra")
    folder = reference_data / "vis_cifar10_first4k"
    pixels = np.asarray(image.open(folder / "cifar10_batch_0.png").convert("RGB")).reshape(1000, 32, 32, 3)[:400]
    rows = {"image": (pixels / np.float32(255) - MEAN) / SCALE, "label": np.load(folder / "labels.npy")[:400]}
    task, params = network(reference_data / "models_cifar10_resnet" / file, depth)
    logits = jax.jit(jax.vmap(task.outputs, in_axes=(None, 0)))(params, rows)
    accuracy = float((np.argmax(logits, 1) == rows["label"]).mean())
    assert accuracy >= 0.98, accuracy
    if depth > 3:
        return
    norms = uj.gradient_norms(task, params, jax.tree.map(lambda x: x[:16], rows))
    each = jax.jit(jax.vmap(jax.grad(task.loss), in_axes=(None, 0)))(params, jax.tree.map(lambda x: x[:16], rows))
    want = np.sqrt(sum(np.square(np.asarray(x, np.float64)).reshape(16, -1).sum(1) for x in jax.tree.leaves(each)))
    np.testing.assert_allclose(norms, want, rtol=2e-3, atol=1e-5)
