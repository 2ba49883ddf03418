"""All that is fuzzed."""
import pictures
import scripts
import sets
import weights
from mutations import mutate
from sandbox import Target

from utils.errors import InputError

DECODING = (InputError, ValueError)
TARGETS = {target.name: target for target in (
    Target("image", pictures.image_seeds, pictures.mutate_image, pictures.prepare_image, 250, seconds=30,
           allowed=DECODING),
    Target("mask", pictures.mask_seeds, pictures.mutate_mask, pictures.prepare_mask, 1000, allowed=DECODING),
    Target("table", sets.table_seeds, sets.mutate_table, sets.prepare_table, 120),
    Target("rows", sets.row_seeds, sets.mutate_rows, sets.prepare_rows, 25),
    Target("checkpoint", weights.checkpoint_seeds, weights.mutate_checkpoint, weights.prepare_checkpoint, 25),
    Target("state", weights.state_seeds, mutate, weights.prepare_state, 500),
    Target("folder", weights.folder_seeds, weights.mutate_folder, weights.prepare_folder, 25, seconds=20),
    Target("bert", weights.bert_seeds, weights.mutate_bert, weights.prepare_bert, 25),
    Target("results", scripts.result_seeds, scripts.mutate_results, scripts.prepare_results, 25),
    Target("command", scripts.command_seeds, scripts.mutate_command, scripts.prepare_command, 30, seconds=60,
           anywhere=True),
    Target("pictures", pictures.picture_seeds, pictures.mutate_pictures, pictures.prepare_pictures, 10, seconds=30),
    Target("call", pictures.call_seeds, pictures.mutate_call, pictures.prepare_call, 150, allowed=(ValueError,)),
)}
