"""The one door to colpali-engine, peft and transformers, torchvision mended first. Adds nothing of its own."""

from worker.model import torchvision_mend

torchvision_mend.mend()

# ruff: noqa: E402 - these import torchvision, which the line above makes importable
from colpali_engine.compression.token_pooling import HierarchicalTokenPooler
from colpali_engine.models import ColQwen2_5, ColQwen2_5_Processor
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.utils import load_peft_weights
from transformers import AutoTokenizer, Qwen2Tokenizer
from transformers.models.qwen2_5_vl import Qwen2_5_VLConfig, Qwen2_5_VLModel
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.utils.peft_utils import find_adapter_config_file

__all__ = [
    "AutoTokenizer",
    "ColQwen2_5",
    "ColQwen2_5_Processor",
    "HierarchicalTokenPooler",
    "LoraConfig",
    "PeftModel",
    "Qwen2Tokenizer",
    "Qwen2VLImageProcessor",
    "Qwen2VLVideoProcessor",
    "Qwen2_5_VLConfig",
    "Qwen2_5_VLModel",
    "find_adapter_config_file",
    "get_peft_model_state_dict",
    "load_peft_weights",
]
