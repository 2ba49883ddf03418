"""The smallest images that the networks can work on; here, because flags, networks and evaluation all refuse others."""

SMALLEST_SIDE = 33  # pixels, of the longer side
TOO_SMALL = f"below {SMALLEST_SIDE} px the last Swin stage is a single position, on which InstanceNorm cannot work"
