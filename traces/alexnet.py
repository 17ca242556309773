"""AlexNet as the paper trains it: 23 layers, ungrouped convolutions, 227 x 227 images."""

from .cudnn import Algorithms, named
from .layers import Network
from .model import Trace
from .step import training_step


def alexnet(batch: int = 200, algorithms: Algorithms = "none") -> Trace:
    """The paper's AlexNet (Fig. 2, 10, 12; Tables 1-3): 23 layers, 62,378,344 parameters.

    *algorithms*: cudnn gives each convolution the algorithms of its era, with workspaces.
    """
    net = Network("alexnet", batch, (3, 227, 227))
    x = net.conv("data", "conv1", 96, 11, stride=4)
    x = net.pool(net.lrn(net.relu(x, "relu1"), "lrn1"), "pool1", 3, 2)
    x = net.conv(x, "conv2", 256, 5, padding=2)
    x = net.pool(net.lrn(net.relu(x, "relu2"), "lrn2"), "pool2", 3, 2)
    x = net.relu(net.conv(x, "conv3", 384, 3, padding=1), "relu3")
    x = net.relu(net.conv(x, "conv4", 384, 3, padding=1), "relu4")
    x = net.relu(net.conv(x, "conv5", 256, 3, padding=1), "relu5")
    x = net.pool(x, "pool5", 3, 2)
    x = net.dropout(net.relu(net.fc(x, "fc6", 4096), "relu6"), "drop6")
    x = net.dropout(net.relu(net.fc(x, "fc7", 4096), "relu7"), "drop7")
    net.softmax(net.fc(x, "fc8", 1000), "softmax")
    name = f"alexnet:batch={batch}" + named(algorithms)
    return training_step(net, name, algorithms=algorithms)
