"""The sizes of images that the networks can work on; here, because flags, networks and evaluation all refuse others."""

SMALLEST_SIDE = 33  # pixels, of the longer side
LARGEST_SIDE = 2**14  # pixels; one such pair takes more memory than machines have
BLOCK = 8  # pixels: a position of the fuser's last level
TILE, SMALLEST_TILE = 448, 128  # pixels, sides of the tiles in which larger pictures are fused; 96 of them overlap
WHOLE = 1.6  # tiles' areas up to which a picture is fused whole: by default those of 640×480 px, as many cameras have
MAX_PIXELS = 89_478_485  # Pillow's own limit, beyond which it takes a picture for a decompression bomb
TOO_SMALL = f"below {SMALLEST_SIDE} px the last Swin stage is a single position, on which InstanceNorm cannot work"
