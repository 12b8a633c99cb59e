"""The architectures, each with the ways in which it is exported: PATH+VARIANT+..., separated by blanks.

An architecture is a function that returns the model, how it is run on its inputs, the inputs by name, and which of their
dimensions vary.
"""
import os

import torch
import transformers as t

HIDDEN = int(os.environ.get("QKVGEMM_EXPORT_HIDDEN", 64))
VOCAB = int(os.environ.get("QKVGEMM_EXPORT_VOCAB", 99))
HEADS, KV_HEADS, LAYERS = 4, 2, 2
INNER = HIDDEN * 3 // 2
BATCH, SEQUENCE = 2, 7
TOKENS = {0: "batch", 1: "sequence"}


def tokens(high=VOCAB):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, high, (BATCH, SEQUENCE), generator=generator)


def values(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def first(output):
    for key in ("logits", "last_hidden_state", "image_embeds", "predicted_depth"):
        value = getattr(output, key, None)
        if value is not None:
            return value
    return output[0]


def make(model_name, config_name, settings, **load):
    config = getattr(t, config_name)(**settings)
    config._attn_implementation = load.get("attention", "eager")
    config._experts_implementation = "eager"
    torch.manual_seed(0)
    return getattr(t, model_name)(config).eval()


SIZES = dict(hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=INNER, vocab_size=VOCAB, max_position_embeddings=40)


def encoder(model, config, **settings):
    """input_ids and attention_mask."""
    def build():
        m = make(model, config, {**SIZES, "type_vocab_size": 2, **settings})
        mask = torch.ones(BATCH, SEQUENCE, dtype=torch.int64)
        run = lambda m, ids, mask: first(m(input_ids=ids, attention_mask=mask))
        return m, run, {"input_ids": tokens(), "attention_mask": mask}, {"input_ids": TOKENS, "attention_mask": TOKENS}
    return build


def decoder(model, config, attention="eager", **settings):
    """input_ids alone, no cache."""
    def build():
        m = make(model, config, {**SIZES, "num_key_value_heads": KV_HEADS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **settings}, attention=attention)
        # With a mask, so that nothing looks for several sequences in one row.
        run = lambda m, ids: first(m(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False))
        return m, run, {"input_ids": tokens()}, {"input_ids": TOKENS}
    return build


def cached(model, config, width=HIDDEN // HEADS, kv_heads=KV_HEADS, **settings):
    """input_ids and past keys and values of each layer; gives the new ones."""
    def build():
        m = make(model, config, {**SIZES, "num_key_value_heads": kv_heads, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **settings})

        def run(m, ids, *past):
            cache = t.DynamicCache()
            for layer in range(LAYERS):
                cache.update(past[2 * layer], past[2 * layer + 1], layer)
            out = m(input_ids=ids, past_key_values=cache, use_cache=True)
            new = out.past_key_values
            return (first(out), *[x for layer in new.layers for x in (layer.keys, layer.values)])

        inputs, dynamic = {"input_ids": tokens()}, {"input_ids": TOKENS}
        for layer in range(LAYERS):
            for kind in ("key", "value"):
                name = f"past.{layer}.{kind}"
                inputs[name] = values(BATCH, kv_heads, 5, width)
                dynamic[name] = {0: "batch", 2: "past"}
        return m, run, inputs, dynamic
    return build


def cross_decoder(model, config, part=None, **settings):
    """The decoder of an encoder-decoder: decoder_input_ids and the encoder's hidden states."""
    def build():
        m = make(model, config, settings)
        d = part(m)
        run = lambda d, ids, states: first(d(input_ids=ids, attention_mask=torch.ones_like(ids), encoder_hidden_states=states, use_cache=False))
        return d, run, {"input_ids": tokens(), "states": values(BATCH, 9, HIDDEN)}, {"input_ids": TOKENS, "states": {0: "batch", 1: "source"}}
    return build


def part_encoder(model, config, part, **settings):
    """The encoder of an encoder-decoder."""
    def build():
        m = part(make(model, config, settings))
        run = lambda m, ids: first(m(input_ids=ids))
        return m, run, {"input_ids": tokens()}, {"input_ids": TOKENS}
    return build


def image(model, config, size=32, channels=3, part=lambda m: m, **settings):
    def build():
        m = part(make(model, config, settings))
        run = lambda m, x: first(m(x))
        return m, run, {"pixel_values": values(BATCH, channels, size, size)}, {"pixel_values": {0: "batch"}}
    return build


def audio(model, config, **settings):
    def build():
        m = make(model, config, settings)
        return m, lambda m, x: first(m(x)), {"input_values": values(BATCH, 400)}, {"input_values": {0: "batch"}}
    return build


def torch_encoder(norm_first):
    """torch.nn.TransformerEncoder: one packed in_proj of MultiheadAttention."""
    def build():
        layer = torch.nn.TransformerEncoderLayer(HIDDEN, HEADS, INNER, batch_first=True, norm_first=norm_first)
        m = torch.nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False).eval()
        # The fused path of inference has no ONNX form.
        torch.backends.mha.set_fastpath_enabled(False)
        return m, lambda m, x: m(x), {"x": values(BATCH, SEQUENCE, HIDDEN)}, {"x": {0: "batch", 1: "sequence"}}
    return build


BART = dict(d_model=HIDDEN, encoder_layers=LAYERS, decoder_layers=LAYERS, encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, encoder_ffn_dim=INNER, decoder_ffn_dim=INNER, vocab_size=VOCAB, max_position_embeddings=40, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)
T5 = dict(d_model=HIDDEN, d_kv=16, d_ff=INNER, num_layers=LAYERS, num_decoder_layers=LAYERS, num_heads=HEADS, vocab_size=VOCAB)
IMAGE = dict(hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=INNER, image_size=32, patch_size=8)
AUDIO = dict(hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=INNER, conv_dim=(16, 16), conv_kernel=(10, 3), conv_stride=(5, 2), num_feat_extract_layers=2, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4, vocab_size=20)
ORT = "ort_basic+ort_ext+ort_all"

ARCHITECTURES = {
    "roberta": (encoder("RobertaModel", "RobertaConfig"), f"ts11 ts12+{ORT} ts14+{ORT}+fp16+fp16io+dynint8+dynuint8+qdqw8+nbits8+nbits4+tfopt+tfopt16+external+shapes ts17static+{ORT} ts17nofold dynamo18+script+rewritten+script_ort+{ORT}+tfopt dynamo18raw dynamo20 dynamo21 dynamo22 dynamo23 dynamo23raw ts17half dynamo18half dynamo18bf16"),
    "electra": (encoder("ElectraModel", "ElectraConfig", embedding_size=32), f"ts14+ort_ext ts17 dynamo18"),
    "albert": (encoder("AlbertModel", "AlbertConfig", embedding_size=32), f"ts11 ts14+{ORT}+dynint8+nbits8 ts17 dynamo18 dynamo23"),
    "mpnet": (encoder("MPNetModel", "MPNetConfig"), "ts14+ort_ext ts17 dynamo18"),
    "deberta_v2": (encoder("DebertaV2Model", "DebertaV2Config", relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8, norm_rel_ebd="layer_norm", share_att_key=True, max_relative_positions=8), "ts14 ts17 dynamo18"),
    "deberta": (encoder("DebertaModel", "DebertaConfig", relative_attention=True, pos_att_type=["p2c", "c2p"], max_relative_positions=8), "ts14 ts17 dynamo18"),
    "modernbert": (encoder("ModernBertModel", "ModernBertConfig", global_attn_every_n_layers=2, pad_token_id=0, reference_compile=False), "ts17+ort_ext+fp16io dynamo18+script_ort dynamo23"),
    "nomic_bert": (encoder("NomicBertModel", "NomicBertConfig"), "ts17 dynamo18"),
    "esm": (encoder("EsmModel", "EsmConfig", position_embedding_type="rotary", pad_token_id=1, mask_token_id=2), "ts14 dynamo18"),
    "layoutlm": (encoder("LayoutLMModel", "LayoutLMConfig"), "ts14"),
    "rembert": (encoder("RemBertModel", "RemBertConfig", input_embedding_size=32), "ts14 dynamo18"),
    "convbert": (encoder("ConvBertModel", "ConvBertConfig", embedding_size=HIDDEN, head_ratio=2), "ts14"),
    "mobilebert": (encoder("MobileBertModel", "MobileBertConfig", embedding_size=32, intra_bottleneck_size=32, num_feedforward_networks=2), "ts14"),
    "torch_prenorm": (torch_encoder(True), "ts11 ts14 ts17+ort_ext dynamo18 dynamo23 ts17half dynamo18half"),
    "torch_postnorm": (torch_encoder(False), "ts14 ts17 dynamo18"),
    "bart_encoder": (part_encoder("BartModel", "BartConfig", lambda m: m.encoder, **BART), "ts14 ts17+ort_ext+dynint8 dynamo18"),
    "bart_decoder": (cross_decoder("BartModel", "BartConfig", lambda m: m.decoder, **BART), "ts14 ts17+ort_ext dynamo18"),
    "marian_decoder": (cross_decoder("MarianModel", "MarianConfig", lambda m: m.decoder, **BART), "ts14 ts17+dynint8 dynamo18"),
    "mbart_decoder": (cross_decoder("MBartModel", "MBartConfig", lambda m: m.decoder, **BART), "ts14+ort_ext dynamo18"),
    "whisper_decoder": (cross_decoder("WhisperModel", "WhisperConfig", lambda m: m.decoder, **BART, max_target_positions=40), "ts14 ts17+ort_ext+nbits8 dynamo18+script_ort"),
    "trocr_decoder": (cross_decoder("TrOCRForCausalLM", "TrOCRConfig", lambda m: m.model.decoder, d_model=HIDDEN, decoder_layers=LAYERS, decoder_attention_heads=HEADS, decoder_ffn_dim=INNER, vocab_size=VOCAB, cross_attention_hidden_size=HIDDEN, max_position_embeddings=40), "ts14 dynamo18"),
    "t5_decoder": (cross_decoder("T5Model", "T5Config", lambda m: m.decoder, **T5), "ts14+ort_ext ts17 dynamo18 dynamo23 ts17half dynamo18half"),
    "mt5_decoder": (cross_decoder("MT5Model", "MT5Config", lambda m: m.decoder, **T5, feed_forward_proj="gated-gelu"), "ts14 ts17 dynamo18"),
    "mistral": (decoder("MistralForCausalLM", "MistralConfig", sliding_window=4), f"ts12 ts14+{ORT}+fp16+fp16io+dynint8+qdqw8+nbits8+external ts17nofold dynamo18+{ORT}+script+rewritten+script_ort+tfopt dynamo18raw dynamo19 dynamo20 dynamo21 dynamo22 dynamo23+ort_ext dynamo23raw ts17half dynamo18half dynamo18bf16"),
    "mistral_cache": (cached("MistralForCausalLM", "MistralConfig", sliding_window=None), "ts14+ort_ext+nbits8 dynamo18+script_ort dynamo23"),
    "mixtral": (decoder("MixtralForCausalLM", "MixtralConfig", num_local_experts=4, num_experts_per_tok=2), "ts14 ts17 dynamo18"),
    "qwen3": (decoder("Qwen3ForCausalLM", "Qwen3Config", head_dim=32), "ts14+ort_ext+fp16io+dynint8 ts17 dynamo18+script_ort dynamo23 ts17half dynamo18half dynamo18bf16"),
    "qwen3_cache": (cached("Qwen3ForCausalLM", "Qwen3Config", 32, head_dim=32), "ts14 dynamo18+script_ort"),
    "qwen3_moe": (decoder("Qwen3MoeForCausalLM", "Qwen3MoeConfig", head_dim=32, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32), "ts14 dynamo18"),
    "gemma2": (decoder("Gemma2ForCausalLM", "Gemma2Config", head_dim=16, query_pre_attn_scalar=16), "ts14+ort_ext+fp16io+nbits8 ts17nofold dynamo18 dynamo18raw dynamo23 ts17half dynamo18half dynamo18bf16"),
    "gemma3": (decoder("Gemma3ForCausalLM", "Gemma3TextConfig", head_dim=16, query_pre_attn_scalar=16), "ts14+ort_ext ts17nofold dynamo18+script_ort dynamo18raw dynamo23"),
    "phi3": (decoder("Phi3ForCausalLM", "Phi3Config"), "ts14+ort_ext+dynint8+nbits8 ts17 dynamo18+script_ort dynamo23 ts17half dynamo18half dynamo18bf16"),
    "falcon": (decoder("FalconForCausalLM", "FalconConfig", multi_query=True, parallel_attn=True, new_decoder_architecture=False, bias=False), "ts14+ort_ext ts17 dynamo18"),
    "falcon_new": (decoder("FalconForCausalLM", "FalconConfig", new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=2), "ts14 dynamo18"),
    "cohere": (decoder("CohereForCausalLM", "CohereConfig"), "ts14+ort_ext ts17 dynamo18"),
    "cohere2": (decoder("Cohere2ForCausalLM", "Cohere2Config"), "ts17 dynamo18"),
    "gptj": (decoder("GPTJForCausalLM", "GPTJConfig", n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, n_positions=40, rotary_dim=HIDDEN // 8), "ts14+ort_ext ts17 dynamo18"),
    "codegen": (decoder("CodeGenForCausalLM", "CodeGenConfig", n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, n_positions=40, rotary_dim=HIDDEN // 8), "ts14 dynamo18"),
    "opt": (decoder("OPTForCausalLM", "OPTConfig", ffn_dim=INNER, word_embed_proj_dim=HIDDEN), "ts14+ort_ext+dynint8 ts17 dynamo18"),
    "stablelm": (decoder("StableLmForCausalLM", "StableLmConfig"), "ts14 ts17 dynamo18"),
    "stablelm_parallel": (decoder("StableLmForCausalLM", "StableLmConfig", use_parallel_residual=True, use_qkv_bias=True, qk_layernorm=True), "ts17 dynamo18"),
    "bigcode": (decoder("GPTBigCodeForCausalLM", "GPTBigCodeConfig", n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, n_positions=40, n_inner=INNER, multi_query=True), "ts14+ort_ext ts17 dynamo18"),
    "mpt": (decoder("MptForCausalLM", "MptConfig", d_model=HIDDEN, n_heads=HEADS, n_layers=LAYERS, expansion_ratio=2, max_seq_len=40), "ts14+ort_ext ts17 dynamo18"),
    "granite": (decoder("GraniteForCausalLM", "GraniteConfig", embedding_multiplier=2.0, residual_multiplier=0.5, logits_scaling=2.0, attention_multiplier=0.2), "ts14 ts17 dynamo18"),
    "smollm3": (decoder("SmolLM3ForCausalLM", "SmolLM3Config"), "ts14 dynamo18"),
    "starcoder2": (decoder("Starcoder2ForCausalLM", "Starcoder2Config"), "ts14+ort_ext dynamo18"),
    "nemotron": (decoder("NemotronForCausalLM", "NemotronConfig"), "ts14 ts17nofold dynamo18 dynamo18raw"),
    "glm": (decoder("GlmForCausalLM", "GlmConfig", head_dim=16), "ts14 dynamo18"),
    "olmo": (decoder("OlmoForCausalLM", "OlmoConfig"), "ts14 ts17 dynamo18"),
    "olmoe": (decoder("OlmoeForCausalLM", "OlmoeConfig", num_experts=4, num_experts_per_tok=2), "ts14 dynamo18"),
    "persimmon": (decoder("PersimmonForCausalLM", "PersimmonConfig"), "ts14 dynamo18"),
    "deepseek_v3": (decoder("DeepseekV3ForCausalLM", "DeepseekV3Config", num_key_value_heads=HEADS, q_lora_rank=24, kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16, first_k_dense_replace=2, n_routed_experts=4, n_group=2, topk_group=1, num_experts_per_tok=2, moe_intermediate_size=32), "ts14 dynamo18"),
    "biogpt": (decoder("BioGptForCausalLM", "BioGptConfig"), "ts14 dynamo18"),
    "xglm": (decoder("XGLMForCausalLM", "XGLMConfig", d_model=HIDDEN, num_layers=LAYERS, attention_heads=HEADS, ffn_dim=INNER), "ts14 dynamo18"),
    "helium": (decoder("HeliumForCausalLM", "HeliumConfig", head_dim=16), "ts14 dynamo18"),
    "gpt_neo": (decoder("GPTNeoForCausalLM", "GPTNeoConfig", num_layers=LAYERS, num_heads=HEADS, attention_types=[[["global", "local"], 1]], window_size=4), "ts14+ort_ext dynamo18"),
    "dinov2": (image("Dinov2Model", "Dinov2Config", hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS, image_size=32, patch_size=8, mlp_ratio=2), "ts14+ort_ext ts17 dynamo18"),
    "dinov2_swiglu": (image("Dinov2Model", "Dinov2Config", hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS, image_size=32, patch_size=8, mlp_ratio=2, use_swiglu_ffn=True), "ts17 dynamo18"),
    "deit": (image("DeiTModel", "DeiTConfig", **IMAGE), "ts14+ort_ext ts17static dynamo18"),
    "beit": (image("BeitModel", "BeitConfig", **IMAGE, use_relative_position_bias=True), "ts14 ts17 dynamo18"),
    "siglip": (image("SiglipVisionModel", "SiglipVisionConfig", **IMAGE), "ts14+ort_ext ts17 dynamo18"),
    "clip_vision": (image("CLIPVisionModel", "CLIPVisionConfig", **IMAGE), "ts14+ort_ext+fp16io ts17 dynamo18 ts17half dynamo18half"),
    "blip_vision": (image("BlipVisionModel", "BlipVisionConfig", **IMAGE), "ts14 ts17 dynamo18"),
    "swin": (image("SwinModel", "SwinConfig", max(16, HIDDEN // 2), image_size=max(16, HIDDEN // 2), patch_size=2, embed_dim=HIDDEN // 2, depths=[2, 2], num_heads=[2, 4], window_size=4), "ts14+ort_ext ts17 dynamo18"),
    "segformer": (image("SegformerModel", "SegformerConfig", depths=[1, 1], hidden_sizes=[32, 64], num_encoder_blocks=2, sr_ratios=[2, 1], num_attention_heads=[1, 2], patch_sizes=[7, 3], strides=[4, 2], mlp_ratios=[2, 2]), "ts14 ts17 dynamo18"),
    "sam_vision": (image("SamVisionModel", "SamVisionConfig", size=64, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS, image_size=64, patch_size=8, window_size=3, global_attn_indexes=[1], output_channels=16, mlp_dim=INNER), "ts14 dynamo18"),
    "convnext": (image("ConvNextModel", "ConvNextConfig", depths=[1, 1], hidden_sizes=[16, 32], num_stages=2), "ts14 dynamo18"),
    "wav2vec2": (audio("Wav2Vec2Model", "Wav2Vec2Config", **AUDIO), "ts14+ort_ext ts17 dynamo18"),
    "wav2vec2_stable": (audio("Wav2Vec2Model", "Wav2Vec2Config", **AUDIO, do_stable_layer_norm=True, feat_extract_norm="layer"), "ts14 dynamo18"),
    "hubert": (audio("HubertModel", "HubertConfig", **AUDIO), "ts14+dynint8 ts17 dynamo18"),
}
