import torch

# The suites' networks are tiny: threads only wait for each other, the more the busier the machine is.
torch.set_num_threads(1)
