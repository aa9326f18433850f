"""The keys of a LLaMA-Factory config that have no counterpart: by why they are left out, and why they cannot be."""

from __future__ import annotations

from mlora_sched.convert import reasons

DROPPED: dict[str, str] = {
    "a job trains; validate and evaluation have verbs and fields of their own": """
        do_train do_eval do_predict predict_with_generate
    """,
    reasons.QUANTISED: """
        quantization_bit quantization_method quantization_type double_quantization quantization_device_map
    """,
    reasons.PRECISION: """
        bf16 fp16 tf32 fp8 fp8_backend fp8_enable_fsdp_float8_all_gather bf16_full_eval fp16_full_eval pure_bf16
        upcast_layernorm upcast_lmhead_output infer_dtype compute_dtype
    """,
    reasons.ATTENTION: """
        flash_attn use_unsloth liger_kernel_config use_cache enable_liger_kernel use_liger_kernel use_v1_kernels
        block_diag_attn use_kv_cache
    """,
    reasons.CHECKPOINTING: """
        gradient_checkpointing gradient_checkpointing_kwargs activation_checkpointing activation_checkpointing_kwargs
        disable_gradient_checkpointing use_unsloth_gc use_reentrant_gc
    """,
    reasons.DISTRIBUTED: """
        deepspeed fsdp fsdp_config ddp_timeout ddp_backend ddp_bucket_cap_mb ddp_broadcast_buffers
        ddp_find_unused_parameters local_rank device_map accelerator_config parallelism_config full_determinism
        master_addr master_port ddp_static_graph average_tokens_across_devices use_cpu use_hyper_parallel
        hyper_parallel_args use_mca use_megatron_bridge megatron_bridge_args resources_per_worker placement_strategy
    """,
    reasons.MEMORY: """
        per_device_eval_batch_size eval_accumulation_steps auto_find_batch_size torch_empty_cache_steps
        low_cpu_mem_usage offload_folder
    """,
    reasons.PACKING: "packing neat_packing train_sampling_strategy group_by_length length_column_name",
    reasons.LOADING: """
        overwrite_cache preprocessing_batch_size preprocessing_num_workers tokenized_path streaming buffer_size
        data_shared_file_system dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
        dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order label_names
        remove_unused_columns cache_dir
    """,
    "every row is used; cut the file": "max_samples",
    "the last batch of an epoch may be smaller": "dataloader_drop_last",
    "files are read one after another as one data set": "mix_strategy interleave_probs",
    "prompts carry no loss unless data.train_on is all": "ignore_pad_token_for_loss",
    reasons.OUTPUT: """
        output_dir overwrite_output_dir save_only_model save_safetensors load_best_model_at_end push_to_hub plot_loss
        logging_dir save_on_each_node
    """,
    "the best checkpoint is that of the lowest held-out loss": "metric_for_best_model greater_is_better",
    reasons.TOKENIZER: "use_fast_tokenizer split_special_tokens tool_format",
    "the base's revision is said at `serve --base NAME=REPO@REV`": "model_revision",
    "how long a row may be is said by cutoff_len and the base": "model_max_length",
    reasons.REMOTE_CODE: "trust_remote_code",
    "bases are loaded by the daemon": "hf_hub_token ms_hub_token om_hub_token adapter_folder",
    reasons.RESUMING: """
        resume_from_checkpoint ignore_data_skip enable_jit_checkpoint restore_callback_states_from_checkpoint
    """,
    reasons.TRACKING: "report_to run_name use_swanlab project",
    "every step's figures are kept (`mlora-sched logs`, `metrics.jsonl`)": """
        logging_strategy logging_first_step logging_nan_inf_filter include_num_input_tokens_seen
        include_effective_tokens_per_second log_level log_level_replica log_on_each_node disable_tqdm
    """,
    "write `early_stopping: {patience: N}` yourself; N counts evaluations, of held-out rows": "early_stopping_steps",
    "no noise is added to embeddings": "neftune_noise_alpha",
    "the objective is cross-entropy as it is": "label_smoothing_factor",
    reasons.OTHER_OPTIMIZER: """
        optim_args optim_target_modules loraplus_lr_embedding lr_scheduler_kwargs
    """,
    "the order of rows follows from training.seed": "data_seed",
    "A starts random and B at 0; see adapter.init_from": "pissa_init pissa_iter pissa_convert",
    "init_from starts a new adapter from the weights of the old one": "create_new_adapter",
    "held-out rows are evaluated by their loss": """
        compute_accuracy eval_on_each_dataset prediction_loss_only eval_delay eval_on_start batch_eval_metrics
        eval_do_concat_batches eval_use_gather_object include_for_metrics
    """,
    reasons.GENERATION: """
        eval_num_beams max_new_tokens max_length temperature top_p top_k num_beams do_sample repetition_penalty
        length_penalty skip_special_tokens infer_backend
    """,
    reasons.MULTIMODAL: "media_dir crop_to_patches use_audio_in_video audio_sampling_rate",
    "write the system message into the rows": "default_system",
    "what a template does with thinking is its own business": "enable_thinking preserve_thinking",
    reasons.DEBUGGING: """
        print_param_status enable_torch_profiler skip_memory_metrics torch_compile torch_compile_backend
        torch_compile_mode debug badam_verbose
    """,
    reasons.PREFERENCES: """
        ref_model ref_model_adapters ref_model_quantization_bit reward_model reward_model_adapters
        reward_model_quantization_bit reward_model_type ld_alpha
    """,
}
"""Keys that are left out whatever they say, by reason."""

REFUSED: dict[str, str] = {
    reasons.FROZEN_BASE: """
        additional_target use_llama_pro train_from_scratch freeze_trainable_modules freeze_extra_modules
        freeze_trainable_layers
    """,
    reasons.SHARED_VOCABULARY: "resize_vocab add_tokens add_special_tokens new_special_tokens_config",
    "the optimiser is AdamW; leave it out, and choose the learning rate anew": """
        use_galore use_apollo use_badam use_muon use_adam_mini
    """,
    "the objective is cross-entropy; leave it out": "use_dft_loss use_asft_loss use_eaft_loss",
    "the base is shared and keeps its positions": "rope_scaling",
    "the base is shared and keeps its attention": "shift_attn mixture_of_depths",
    "a mixture base's routers are frozen": "moe_aux_loss_coef",
}
"""Keys that cannot be left out where they ask for something, by reason."""

FAMILIES: dict[str, str] = {
    reasons.TRACKING: "trackio_ swanlab_ wandb_ mlflow_ tensorboard_",
    reasons.OUTPUT: "hub_ export_",
    reasons.DISTRIBUTED: "ray_ hyper_parallel_ kt_ use_kt",
    reasons.OTHER_OPTIMIZER: "galore_ apollo_ badam_ oft_ module_dropout",
    reasons.PREFERENCES: "pref_ dpo_ kto_ simpo_ ppo_",
    reasons.MULTIMODAL: "image_ video_ audio_ freeze_vision_ freeze_multi_ freeze_language_",
    reasons.GENERATION: "vllm_ sglang_ generation_",
    reasons.DEBUGGING: "profiler_ profile_",
    "special tokens of the base stay as they are": "init_special_",
    "an option of a loss that is not there": "asft_ eaft_",
}
"""Beginnings of keys that are left out, by reason."""
