"""Planted faults of the quantized base."""

T = "test_quantize.py::"
LOSS = T + "test_the_quantized_base_is_policy_and_reference"
SLOW_NF4, SLOW_INT8 = T + "test_nf4_equals_a_slow_double_loop", T + "test_int8_equals_a_slow_double_loop"
LOGITS = T + "test_a_run_is_loaded_with_the_logits_that_it_had"
VALUES = T + "test_value_and_gradient_are_those_of_the_dequantized_matrix"
SAME = T + "test_loading_a_tensor_at_a_time_gives_the_same_model"
Q = "quantize.py"

FAULTS = {
    # formats
    "127 levels become 128": (Q, "scales = absmax_of(weight) / 127", "scales = absmax_of(weight) / 128", T + "test_int8_by_hand"),
    "absmax of a column": (Q, "scales = absmax_of(weight) / 127  ", "scales = absmax_of(weight.t()).t() / 127  ", SLOW_INT8),
    "absmax of the whole matrix": (Q, "absmax = groups.abs().amax(1, keepdim=True)", "absmax = groups.abs().amax().expand(len(groups), 1)", SLOW_INT8),
    "absmax keeps its sign": (Q, "groups.abs().amax(1, keepdim=True)", "groups.amax(1, keepdim=True)", SLOW_NF4),
    "codes rounded down": (Q, "(weight / scales).round()", "(weight / scales).floor()", T + "test_the_error_of_int8_is_a_twelfth_of_its_squared_step"),
    "blocks along columns": (Q, "F.pad(weight.flatten(), (0, -weight.numel() % BLOCK))", "F.pad(weight.t().flatten(), (0, -weight.numel() % BLOCK))", SLOW_NF4),
    "halves of a byte swapped in packing": (Q, "return first << 4 | second, absmax", "return second << 4 | first, absmax", T + "test_nf4_by_hand"),
    "halves of a byte swapped in the table": (Q, "torch.stack([NF4[byte >> 4], NF4[byte & 15]], 1)", "torch.stack([NF4[byte & 15], NF4[byte >> 4]], 1)",
                                              T + "test_the_fast_look_up_equals_the_definition"),
    "levels sorted by size": (Q, ".sort().values       #", ".abs().sort().values       #", T + "test_the_levels_of_nf4_are_those_of_bitsandbytes"),
    "9 levels below 0": (Q, "0.5, 8, dtype=torch.float64))[:-1]   # (7,)", "0.5, 9, dtype=torch.float64))[:-1]   # (7,)",
                         T + "test_the_levels_of_nf4_are_those_of_bitsandbytes"),
    "the level below and not the nearest": (Q, "MIDDLES = (NF4[1:] + NF4[:-1]) / 2", "MIDDLES = NF4[1:]", SLOW_NF4),
    "blocks of 128": (Q, "BLOCK, DOUBLE_BLOCK = 64, 256", "BLOCK, DOUBLE_BLOCK = 128, 256", SLOW_NF4),
    "the mean of the scales is lost": (Q, ".view(-1, 1)[:n] + mean", ".view(-1, 1)[:n]", T + "test_double_quantization_rounds_the_scales_by_at_most_half_a_step"),
    "the mean is not subtracted": (Q, "absmax.double().mean().float()", "absmax.double().mean().float() * 0", T + "test_double_quantization_rounds_the_scales_by_at_most_half_a_step"),
    "double quantization only by name": (Q, "*(quantize_scales(absmax) if double else [absmax])", "absmax", T + "test_the_bits_a_weight_are_those_that_the_docstring_says"),
    "float16 for bfloat16": (Q, "return [weight.bfloat16()]", "return [weight.half()]", T + "test_bf16_is_the_weight_rounded_to_8_bits_of_mantissa"),
    "weights that are not finite pass": (Q, "if not absmax.isfinite().all():", "if False:", T + "test_weights_that_are_not_finite_are_refused"),
    # the layer
    "dequantized in half precision": (Q, "return unpack([*self.parts], self.method, self.shape)", "return unpack([*self.parts], self.method, self.shape).bfloat16().float()", VALUES),
    "backward in float32 under autocast": (Q, "ctx.layer.weight.to(grad.dtype)", "ctx.layer.weight", VALUES),
    "backward by the transposed matrix": (Q, "return linear(grad, weight.t())", "return linear(grad, weight.flipud().t())", VALUES),
    "the bias is left out": (Q, "return linear(x, layer.weight, layer.bias)", "return linear(x, layer.weight)", VALUES),
    "a float matrix waits for backward": (
        Q, "ctx.layer, ctx.dtype = layer, x.dtype", "ctx.layer, ctx.dtype = layer, x.dtype; ctx.save_for_backward(layer.weight)",
        T + "test_nothing_of_the_size_of_the_matrix_is_kept_for_backward"),
    "the attention stays exact": (Q, '(block.attn, "c_attn"), (block.attn, "c_proj"), ', "", T + "test_four_matrices_of_each_block_are_quantized_and_nothing_else"),
    "codes counted as parameters": ("support/cli.py", 'getattr(module, "more_weights", 0)', "0", T + "test_four_matrices_of_each_block_are_quantized_and_nothing_else"),
    # loading
    "Hugging Face's matrices not transposed": (Q, "x.T.contiguous() if in_block else x", "x", SAME),
    "the fingerprint is that of the codes": (Q, "return getattr(model, \"exact_fingerprint\", None) or fingerprint(model)", "return fingerprint(model)", SAME),
    "the head is not tied": (Q, "    model.lm_head.weight = model.transformer.wte.weight\n", "    model.lm_head.weight = nn.Parameter(model.transformer.wte.weight.clone(), requires_grad=False)\n", SAME),
    "no checksum for a file that is read in parts": ("support/checkpoint.py", "if checksum and checksum != digest_of(", "if False and checksum != digest_of(",
                                                     T + "test_a_damaged_folder_is_refused_in_the_same_words"),
    "added rows of the vocabulary stay": ("support/checkpoint.py", "[:self.rows] if self.rows else", "if self.rows else", T + "test_rows_after_gpt2s_vocabulary_are_cut_here_too"),
    "the file is read as a whole": ("support/weights.py", '("model.safetensors", stored_tensors)',
                                    "('model.safetensors', __import__('support.checkpoint').checkpoint.load_tensors)",
                                    T + "test_the_peak_of_memory_is_far_below_the_size_of_the_file"),
    "freed memory is kept": (Q, "    map_large()    #", "    pass    #", T + "test_the_peak_of_memory_is_far_below_the_size_of_the_file"),
    # runs
    "the reference is exact": ("train_pref.py", "add_reference(model, part, autocast, adapters.adapters_off if new_adapter else nullcontext)",
                               "add_reference(adapters.GPT.from_pretrained(args.init_from), part, autocast)", LOSS),
    "the method is forgotten on saving": ("adapters.py", "**quantize.flags_of(model))", ")", LOGITS),
    "the method is forgotten on loading": ("adapters.py", 'about["base"], about.get("quantize"), about.get("double_quant", False)', 'about["base"], None, False', LOGITS),
    "double quantization is forgotten on loading": ("adapters.py", 'about.get("quantize"), about.get("double_quant", False)', 'about.get("quantize"), False', LOGITS),
    "--quantize is parsed only": ("train_pref.py", "args.dropout, args.quantize, args.double_quant)", "args.dropout)", LOSS),
    "--double_quant is parsed only": ("train_pref.py", "args.quantize, args.double_quant)", "args.quantize)", LOGITS),
    "an adapter stands on the codes": ("train_pref.py", "base = ours if about or not args.quantize else quantize.exact_fingerprint(model)", "base = ours", LOGITS),
    "pairs of the exact policy are taken": ("train_pref.py", "preferences.load(model, ours,", "preferences.load(model, base,", T + "test_sampled_pairs_are_those_of_the_quantized_policy"),
    "another base is taken": ("adapters.py", 'if about["base_fingerprint"] != model_fingerprint:', "if False:", T + "test_a_run_on_another_base_is_refused"),
    "any method in adapter.json": (Q, "if method not in (None, *METHODS) or", "if", T + "test_an_adapter_file_with_another_method_is_refused"),
    "the start's method is not taken over": ("support/pref_flags.py", "    args.quantize, args.double_quant = method, double\n", "", T + "test_an_adapter_run_goes_on_with_its_own_method"),
    "another method than the start's is ignored": ("support/pref_flags.py", "if other_method or args.double_quant > double:", "if False:",
                                                   T + "test_flags_without_effect_or_against_the_start_are_refused"),
    "--quantize without an adapter is ignored": ("support/pref_flags.py", '("quantize", args.adapter,', '("quantize", True,',
                                                 T + "test_flags_without_effect_or_against_the_start_are_refused"),
    "--double_quant without nf4 is ignored": ("support/pref_flags.py", '("double_quant", args.quantize == "nf4",', '("double_quant", True,',
                                              T + "test_flags_without_effect_or_against_the_start_are_refused"),
}
