"""RIS-FUSION for other programs: text-guided infrared and visible image fusion with referring segmentation."""
from models import build_criterion, build_model
from predictor import Prediction, Predictor
from utils.errors import InputError

__all__ = ["InputError", "Prediction", "Predictor", "build_criterion", "build_model"]
