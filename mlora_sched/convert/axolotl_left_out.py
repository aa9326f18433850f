"""The keys of an Axolotl config that have no counterpart: by why they are left out, and by why they cannot be."""

from __future__ import annotations

from mlora_sched.convert import reasons

DROPPED: dict[str, str] = {
    "decides, with sequence_len, what becomes of longer rows": "excess_length_strategy",
    "an old name of eval_strategy, which Axolotl itself refuses": "evaluation_strategy",
    reasons.FOUR_BITS: "load_in_4bit",
    reasons.QUANTISED: """
        load_in_8bit gptq bnb_config_kwargs quantize_moe_experts qat quantization peft model_quantization_config
        model_quantization_config_kwargs
    """,
    reasons.PRECISION: """
        bf16 fp16 fp8 tf32 bfloat16 float16 float32 fp32_norms fp8_enable_fsdp_float8_all_gather fp32_norm_classes
    """,
    "adapters and optimisers are always float32": "peft_autocast_adapter_dtype",
    reasons.ATTENTION: """
        flash_attention sdp_attention xformers_attention flex_attention sage_attention eager_attention s2_attention
        attn_implementation lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_embedding_kernel use_kernels
        experts_implementation flex_attn_compile_kwargs flash_optimum gemma4_hybrid_attn_impl sdpa_varlen
        large_head_attention fused_attn_kernel chunked_cross_entropy chunked_cross_entropy_num_chunks
    """,
    reasons.CHECKPOINTING: """
        gradient_checkpointing gradient_checkpointing_kwargs selective_checkpointing activation_offloading
        layer_offloading tiled_mlp tiled_mlp_num_shards tiled_mlp_use_original_mlp llama4_linearized_experts
    """,
    reasons.DISTRIBUTED: """
        deepspeed deepcompile fsdp fsdp_config fsdp_version ddp local_rank world_size ddp_timeout ddp_bucket_cap_mb
        ddp_broadcast_buffers ddp_find_unused_parameters device device_map dp_shard_size dp_replicate_size
        tensor_parallel_size context_parallel_size sequence_parallel_degree heads_k_stride ring_attn_func use_ray
        fsdp_final_state_dict_type accelerator_config lora_on_cpu
    """,
    reasons.MEMORY: """
        qlora_sharded_model_loading low_cpu_mem_usage max_memory gpu_memory_limit auto_find_batch_size eval_batch_size
        gc_steps gc_collect_steps torch_empty_cache_steps
    """,
    reasons.PACKING: """
        sample_packing eval_sample_packing pad_to_sequence_len pad_to_multiple_of sample_packing_group_size
        sample_packing_bin_size batch_flattening sample_packing_sequentially sample_packing_mp_start_method
        multipack_real_batches group_by_length eval_sequence_len max_packed_sequence_len sample_packing_eff_est
        pretrain_multipack_buffer_size pretrain_multipack_attn pretraining_sample_concatenation
        streaming_multipack_buffer_size
    """,
    reasons.LOADING: """
        dataset_prepared_path dataset_processes dataset_num_proc skip_prepare_dataset dataset_keep_in_memory
        dataloader_pin_memory dataloader_num_workers dataloader_prefetch_factor remove_unused_columns streaming
        preprocess_iterable total_num_tokens total_supervised_tokens dataset_shard_num dataset_shard_idx
        num_dataset_shards_to_save
    """,
    "every row is used; remove repeated ones from the file": "dataset_exact_deduplication",
    "every row is used; remove short or long ones from the file": "min_sample_len max_prompt_len",
    "the last batch of an epoch may be smaller": "dataloader_drop_last",
    "rows are shuffled every epoch": "shuffle_merged_datasets shuffle_before_merging_datasets",
    reasons.OUTPUT: """
        output_dir push_dataset_to_hub save_safetensors save_only_model merge_lora merge_method load_best_model_at_end
    """,
    "`mlora-sched pull --checkpoint` needs a step of save_every": "save_first_step",
    "the best checkpoint is that of the lowest held-out loss": "metric_for_best_model greater_is_better",
    reasons.TOKENIZER: """
        tokenizer_type tokenizer_config tokenizer_use_fast tokenizer_legacy tokenizer_use_mistral_common
        tokenizer_save_jinja_files special_tokens eot_tokens fix_untrained_tokens processor_type processor_kwargs
    """,
    "the base's own config says it": """
        model_type base_model_config cls_model_config type_of_model is_falcon_derived_model is_llama_derived_model
        is_mistral_derived_model is_qwen_derived_model lora_fan_in_fan_out
    """,
    "the base's revision is said at `serve --base NAME=REPO@REV`": "revision_of_model",
    reasons.REMOTE_CODE: "trust_remote_code",
    "bases are loaded by the daemon": "hf_use_auth_token",
    reasons.RESUMING: "resume_from_checkpoint auto_resume_from_checkpoints",
    reasons.TRACKING: "use_tensorboard use_wandb use_mlflow use_comet use_trackio",
    "write `early_stopping: {patience: N}` yourself; N counts evaluations, of held-out rows": "early_stopping_patience",
    "a loss; guards.loss_spike is a factor on the usual one, choose it yourself": "loss_watchdog_threshold",
    "belongs to loss_watchdog_threshold; here it is guards.patience": "loss_watchdog_patience",
    "no noise is added to embeddings": "neftune_noise_alpha noisy_embedding_alpha",
    reasons.OTHER_OPTIMIZER: """
        optim_args optim_target_modules adam_beta3 adam_epsilon2 torchdistx_path loraplus_lr_embedding embedding_lr
        embedding_lr_scale
    """,
    "the rate goes down to 0": "lr_scheduler_kwargs cosine_min_lr_ratio cosine_constant_lr_ratio",
    "the rate rises linearly": "lr_quadratic_warmup lr_div_factor",
    "A starts random and B at 0; see adapter.init_from": "peft_init_lora_weights loftq_config",
    "tied weights are frozen like all of the base": "peft_ensure_weight_tying embeddings_skip_upcast",
    "held-out rows are evaluated by their loss": "do_causal_lm_eval",
    reasons.GENERATION: """
        eval_causal_lm_metrics do_bench_eval bench_dataset bench_split eval_table_size eval_max_new_tokens
        generate_samples num_generation_samples
    """,
    reasons.DEBUGGING: """
        profiler_steps profiler_steps_start include_tokens_per_second include_tkps strict plugins axolotl_config_path
        capabilities env_capabilities is_preprocess torch_compile torch_compile_backend torch_compile_mode
        torch_compile_options trainer_cls dynamic_checkpoint experimental_skip_move_to_device
    """,
    "write the system message into the rows": "default_system_message",
    "templates take no arguments; write a Jinja file, see data.template": "chat_template_kwargs",
}
"""Keys that are left out whatever they say, by reason."""

REFUSED: dict[str, str] = {
    reasons.NOT_SFT: "rl reward_model process_reward_model trl vllm ebft num_labels",
    "streamed pretraining is not there; name files under datasets": "pretraining_dataset",
    reasons.FROZEN_BASE: "lora_modules_to_save unfrozen_parameters relora",
    reasons.SHARED_VOCABULARY: """
        peft_trainable_token_indices tokens added_tokens_overrides resize_token_embeddings_to_32x reinit_weights
        mean_resizing_embeddings shrink_embeddings
    """,
    "parameters cannot be targets, only linears": "lora_target_parameters",
    "all modules of an adapter have one rank and alpha": "lora_rank_pattern lora_alpha_pattern",
    "an adapter sits on all layers; name modules by path": "peft_layers_to_transform peft_layers_pattern",
    "the base keeps its layers": "peft_layer_replication",
    "an adapter has one learning rate; loraplus_lr_ratio gives B another": "lr_groups",
    "the base is shared and keeps its positions": "rope_scaling use_pose",
    "the base is shared and keeps its attention": "scaling_softmax use_onebitllms",
    "the objective is cross-entropy; leave it out": "use_eaft",
    "the base is shared and keeps its config": "overrides_of_model_config overrides_of_model_kwargs",
}
"""Keys that cannot be left out where they ask for something, by reason."""

FAMILIES: dict[str, str] = {
    reasons.TRACKING: "wandb_ swanlab_ use_swanlab mlflow_ hf_mlflow_ comet_ trackio_ otel_ use_otel",
    reasons.OUTPUT: "hub_",
    reasons.QUANTISED: "gptq_",
    reasons.DISTRIBUTED: "ray_ resources_per_",
    reasons.GENERATION: "gradio_ generation_",
    reasons.OTHER_OPTIMIZER: "galore_ qgalore_ dion_ jagged_ lisa_ relora_",
    reasons.PREFERENCES: "dpo_ kto_ orpo_ simpo_ cpo_ rpo_ rl_ center_rewards_ precompute_ref_",
    reasons.MULTIMODAL: "image_ freeze_mm_ role_boundaries",
    "an option of a setting that is not there": "pose_ scaling_softmax_ eaft_",
    reasons.ATTENTION: "liger_ unsloth_ flash_attn_ cut_cross_entropy",
}
"""Beginnings of keys that are left out, by reason."""
