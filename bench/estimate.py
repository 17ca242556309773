"""How long estimates take: a GPT of 1.3 billion parameters, and a ResNet of depth 1,001.

python bench/estimate.py
"""

import time

from superneurons import zoo
from superneurons.executor import estimate

MODELS = {
    "gpt, 1.3 billion parameters": zoo.gpt,
    "resnet, depth 1,001, batch 16": lambda: zoo.resnet(n1=6, n2=32, n3=289, n4=6, batch=16),
}

for name, build in MODELS.items():
    began = time.perf_counter()
    trace = estimate(build, name)
    facts = trace.facts
    print(f"{name}: {facts.op_count} operations in {time.perf_counter() - began:.1f} s")
