"""Cases of hostile attacks, defenses and processes."""

from __future__ import annotations

from tests.tools.trust_case_records import TrustCase, played

REFEREE = "referee/test_referee.py"
CONTRACT = "contract/test_defense_checks.py::test_a_check_fails_on_a_forward_made_to_fail_it"
PROBED = "plugins/diagnostics/test_planted_models.py::test_a_planted_model_is_caught"
PROCESS = "sandbox/test_process.py"
FORWARD = f"{PROCESS}::test_code_that_fails_in_the_forward_pass_is_reported"
IMPORT = f"{PROCESS}::test_code_that_fails_at_import_is_reported"
WAYS_OUT = "sandbox/test_isolation.py::test_every_way_out_is_blocked"

ATTACK_RESULTS = (
    TrustCase(
        1, "A", "One image lies outside the L-infinity ball by 0.001.",
        "It counts as unbroken, and the count of refusals is shown.",
        (f"{REFEREE}::test_each_kind_of_invalid_image_has_its_own_verdict_and_none_is_changed",
         f"{REFEREE}::test_ball_and_box_checks_equal_those_of_numpy_near_the_boundary",
         "core/test_outcomes.py::test_refused_images_count_as_unbroken"),
    ),
    TrustCase(
        2, "A", "Rounding leads outside by 5e-8.", "The image is accepted.",
        (f"{REFEREE}::test_float32_rounding_at_the_edge_is_no_violation",),
    ),
    TrustCase(
        3, "A", "An image exceeds its L2, L1 or L0 budget.", "It counts as unbroken.",
        (f"{REFEREE}::test_ball_and_box_checks_equal_those_of_numpy_near_the_boundary",
         f"{REFEREE}::test_each_kind_of_invalid_image_has_its_own_verdict_and_none_is_changed",
         f"{REFEREE}::test_one_place_more_than_a_sparse_ball_allows_is_refused"),
    ),
    TrustCase(
        4, "A", "A pixel is -0.01 or 1.01.", "The image counts as unbroken.",
        (f"{REFEREE}::test_each_kind_of_invalid_image_has_its_own_verdict_and_none_is_changed",
         "engine/test_success_tracker.py::test_an_image_outside_the_box_is_no_success"),
    ),
    TrustCase(
        5, "A", "A pixel is NaN or infinite.", "The image counts as unbroken.",
        ("engine/test_values.py::test_images_that_are_not_finite_are_refused_one_by_one",
         f"{REFEREE}::test_each_kind_of_invalid_image_has_its_own_verdict_and_none_is_changed"),
    ),
    TrustCase(
        6, "A", "The attack returns another shape, or one image less.",
        "The cell fails, and the message names both shapes.",
        ("engine/test_values.py::test_images_of_another_kind_are_refused_in_one_sentence",
         f"{REFEREE}::test_candidates_of_wrong_shape_or_type_are_a_plugin_error",
         "cli/test_user_errors.py::test_a_wrong_shape_fails_its_cells_and_no_others"),
    ),
    TrustCase(
        7, "A", "The attack returns uint8, float16 or float64.",
        "The cell fails, and the message names the type.",
        ("engine/test_values.py::test_images_of_another_kind_are_refused_in_one_sentence",
         "engine/test_values.py::test_states_of_another_kind_are_refused"),
    ),
    TrustCase(
        8, "A", "The attack returns the clean images.", "The cell is done, and nothing is broken.",
        (f"{REFEREE}::test_a_correctly_classified_clean_image_is_robust",
         "engine/test_success_tracker.py::"
         "test_a_right_answer_and_an_image_outside_the_ball_are_no_success"),
    ),
    TrustCase(
        9, "A", "The attack returns other images of the data set.", "They count as unbroken.",
        (played("returns-other-images"),),
    ),
    TrustCase(
        10, "A", "The attack changes its input in place.",
        "The set is measured from the stored original.",
        ("engine/test_attack_view.py::"
         "test_an_attack_that_writes_gets_the_verdicts_of_its_honest_counterpart",
         "evaluation/test_pixel_guard.py::test_a_cell_in_which_clean_pixels_change_is_refused"),
    ),
    TrustCase(
        11, "A", "The attack changes weights, statistics, train mode or generators of the defense.",
        "The referee's fresh model is another one; `bench check` names it.",
        ("evaluation/test_built_defense.py::"
         "test_the_referee_has_another_copy_of_the_model_than_the_attack",
         "contract/test_attack_independence_checks.py::"
         "test_a_check_fails_on_an_attack_made_to_fail_it",
         "sandbox/test_attack_proxy.py::"
         "test_an_attack_sees_its_rows_but_no_example_indices_and_no_defense"),
    ),
    TrustCase(
        12, "A", "The attack claims a success that is none.", "The fresh model decides.",
        (f"{REFEREE}::test_a_claim_that_the_fresh_model_does_not_confirm_is_counted",),
    ),
    TrustCase(
        13, "A", "The attack exceeds its budget, or asks a black box for gradients.",
        "The query gains nothing or fails the cell; counts are exact.",
        ("engine/test_ledger.py::test_budgets_are_enforced",
         "engine/test_ledger.py::test_counts_equal_those_of_an_independent_hook",
         "cli/test_user_errors.py::test_a_query_that_the_threat_model_forbids_fails_the_cell"),
    ),
    TrustCase(
        14, "A", "The attack works on some batches and raises on the last.",
        "The other batches are kept, and the row has no rank.",
        ("evaluation/test_partial_cells.py::"
         "test_an_attack_that_fails_on_the_last_batch_keeps_the_others_and_has_no_rank",
         "results/test_ranking.py::test_a_failed_cell_has_its_reason_and_no_figure"),
    ),
    TrustCase(
        15, "A", "A targeted attack reaches another class.", "Only the target counts.",
        (f"{REFEREE}::test_a_targeted_goal_counts_votes_for_its_target_only",
         "evaluation/test_built_defense.py::"
         "test_every_wrong_class_is_an_item_and_each_success_reaches_its_target"),
    ),
)  # fmt: skip

DEFENSES = (
    TrustCase(
        16, "B", "Logits are random.", "Flagged as not deterministic.",
        (f"{CONTRACT}[asking-twice-answers-twice-the-same]",
         f"{PROBED}[deterministic: undeclared noise]"),
    ),
    TrustCase(
        17, "B", "The batch mean is used.", "Flagged as dependent on the batch.",
        (f"{CONTRACT}[companions-do-not-matter]", f"{PROBED}[batch-independent: batch mean]"),
    ),
    TrustCase(
        18, "B", "A batch of one is answered differently.", "Flagged as dependent on the batch.",
        (f"{CONTRACT}[one-image-is-a-batch]", f"{PROBED}[batch-independent: batches of one]"),
    ),
    TrustCase(
        19, "B", "The model is left in train mode.", "Flagged, with a hint.",
        (f"{CONTRACT}[eval-mode-is-kept]", f"{PROBED}[gradient-mode: switches to train mode]"),
    ),
    TrustCase(
        20, "B", "Clean inputs are kept and looked up.", "Flagged as having a state.",
        (f"{CONTRACT}[calls-leave-no-trace]", f"{PROBED}[memorised-images: hash of bytes]"),
    ),
    TrustCase(
        21, "B", "Answers change after some calls.", "Flagged as having a state.",
        (f"{CONTRACT}[calls-leave-no-trace]", f"{PROBED}[stateless: call count]"),
    ),
    TrustCase(
        22, "B", "Answers change once gradients are requested.", "Flagged as having a state.",
        (f"{CONTRACT}[gradients-leave-no-trace]", f"{PROBED}[stateless: after many gradients]",
         f"{PROBED}[gradient-mode: watches requires_grad]"),
    ),
    TrustCase(
        23, "B", "Answers depend on clock, process, environment or a fresh start.", "Flagged.",
        ("evaluation/test_fresh_process.py::"
         "test_a_defense_that_depends_on_the_process_is_a_warning",
         f"{PROBED}[fresh-process: another process]"),
    ),
    TrustCase(
        24, "B", "The gradient is cut, rounded, saturated, one-hot or wrong.", "Flagged, each one.",
        (f"{PROBED}[zero-gradients: shattered: detached]",
         f"{PROBED}[zero-gradients: shattered: rounding]",
         f"{PROBED}[zero-gradients: vanishing: saturated]", f"{PROBED}[probabilities: one-hot]",
         f"{PROBED}[gradient-agrees: reversed]",
         "contract/test_gradient_checks.py::test_a_check_fails_on_a_forward_made_to_fail_it"),
    ),
    TrustCase(
        25, "B", "The defense returns probabilities.", "Flagged.",
        (f"{PROBED}[probabilities: softmax]",),
    ),
    TrustCase(
        26, "B", "Logits are NaN or infinite, or of another number of classes.",
        "The images count as wrong; another number of classes fails the cell.",
        ("cli/test_user_errors.py::test_logits_that_are_not_finite_count_as_wrong_and_are_reported",
         f"{REFEREE}::test_a_nan_answer_is_a_wrong_answer",
         "engine/test_answers.py::test_a_wrong_number_of_columns_is_described"),
    ),
    TrustCase(
        27, "B", "The defense abstains, or answers with one class more.",
        "Only a defense that declares a share of rejections may.",
        ("engine/test_answers.py::test_a_wrong_number_of_columns_is_described",
         f"{REFEREE}::test_a_rejected_clean_image_counts_as_misclassified",
         "contract/test_defense_checks.py::test_rejecting_more_than_declared_fails"),
    ),
    TrustCase(
        28, "B", "The test images are memorised, or looked up by a hash.", "Flagged.",
        ("contract/test_defense_checks.py::test_memorised_test_images_fail",
         f"{PROBED}[memorised-images: nearest, always]",
         f"{PROBED}[memorised-images: rounded hash]"),
    ),
    TrustCase(
        29, "B", "The defense optimises while it answers.",
        "Flagged as dynamic, and its time is reported.",
        ("results/test_example_results.py::"
         "test_a_costly_defense_is_listed_with_its_own_n_and_without_a_rank",
         "results/test_measures.py::test_costs_are_per_example_and_the_dearest_attack_is_first",
         f"{PROBED}[inner-optimisation: gradients]",
         f"{PROBED}[inner-optimisation: a search without gradients]",
         "sandbox/test_defense_proxy.py::"
         "test_the_work_of_an_answer_is_counted_in_the_sandbox"),
        reason="The passes that it declares make its cost visible, and then it is not flagged. A "
        "worker counts its own: who hides the optimisation on purpose can report another number.",
    ),
    TrustCase(
        30, "B", "The defense sets seeds, or patches torch and the harness's objects.",
        "No effect outside its process.",
        (f"{PROCESS}::test_patches_of_torch_in_the_worker_have_no_effect_here",
         f"{CONTRACT}[global-random-state-is-left-alone]", played("patches-torch")),
    ),
    TrustCase(
        31, "B", "The defense looks for the attack in frames or in the garbage collector.",
        "It finds nothing.", (played("labels-in-the-callers-memory"),),
    ),
    TrustCase(
        32, "B", "The model is too slow.", "Timeout, with the images a second that are needed.",
        (f"{FORWARD}[a sleep that ignores signals]", played("endless-loop")),
    ),
)  # fmt: skip

PROCESSES = (
    TrustCase(
        33, "C", "An endless loop; a sleep that ignores SIGTERM.", "Timeout.",
        (f"{FORWARD}[an endless loop]", f"{FORWARD}[a sleep that ignores signals]"),
    ),
    TrustCase(
        34, "C", "An import that never ends.", "Timeout; the run goes on without the plugin.",
        (f"{IMPORT}[an import that never ends]",),
    ),
    TrustCase(
        35, "C", "A fork bomb.", "The limit of processes stops it.",
        (f"{FORWARD}[a fork bomb]", played("fork-bomb")),
    ),
    TrustCase(
        36, "C", "A daemon that outlives its call.", "It ends with the worker.",
        (f"{PROCESS}::test_child_processes_end_with_the_worker", played("daemon-by-double-fork")),
    ),
    TrustCase(
        37, "C", "A leak; one huge allocation.", "The limit of memory stops it.",
        (f"{FORWARD}[a huge tensor]", f"{FORWARD}[a leak]", f"{FORWARD}[memory of many processes]",
         played("memory-of-children")),
    ),
    TrustCase(
        38, "C", "The memory of the GPU runs out.", "Retried at half the batch, then typed.", (),
        "absent", "The sandbox has no GPU, and the tests run without one.",
    ),
    TrustCase(
        39, "C", "An illegal access on the GPU.", "The worker dies; the next cell runs.", (),
        "absent", "The sandbox has no GPU, and the tests run without one.",
    ),
    TrustCase(
        40, "C", "Segmentation fault, abort, silent exit, sys.exit, KeyboardInterrupt.",
        "The cell fails with the signal or the status.",
        (f"{FORWARD}[a segmentation fault]", f"{FORWARD}[an abort]", f"{IMPORT}[a silent exit]",
         f"{IMPORT}[an exit]", f"{IMPORT}[an interrupt]",
         "evaluation/test_worker.py::test_any_exception_of_a_plugin_fails_its_cell_alone"),
    ),
    TrustCase(
        41, "C", "Gigabytes of output, escape sequences, invalid UTF-8.",
        "The limit of output stops it, and messages are printable.",
        (f"{FORWARD}[much text output]", f"{FORWARD}[much binary output]",
         f"{IMPORT}[an error with control characters]", played("escapes-in-an-error")),
    ),
    TrustCase(
        42, "C", "Fills its folder, writes a million files or a sparse terabyte.",
        "The size of its folder stops it; shared memory cannot be written.",
        (f"{FORWARD}[a full disk]", f"{FORWARD}[one large file]",
         f"{WAYS_OUT}[write into shared memory]", played("fills-its-folder")),
    ),
    TrustCase(
        43, "C", "Opens 100,000 files, raises its limits.", "Refused.",
        (f"{FORWARD}[many open files]", f"{WAYS_OUT}[more processes]", f"{WAYS_OUT}[more memory]"),
    ),
    TrustCase(
        44, "C", "Network by TCP, UDP, names, abstract sockets.", "Refused.",
        (f"{WAYS_OUT}[tcp]", f"{WAYS_OUT}[udp]", f"{WAYS_OUT}[names]",
         f"{WAYS_OUT}[abstract socket]", played("sockets-of-every-family")),
    ),
    TrustCase(
        45, "C", "Reads database, home, keys, other plugins, the environment of process 1.",
        "They are not there.",
        (f"{WAYS_OUT}[database]", f"{WAYS_OUT}[home]", f"{WAYS_OUT}[other submissions]",
         f"{WAYS_OUT}[environments]",
         "sandbox/test_isolation.py::test_the_same_trials_succeed_outside_the_sandbox",
         played("environments-and-memories")),
    ),
    TrustCase(
        46, "C", "Writes to packages, its own source or the harness.", "Read-only.",
        (f"{WAYS_OUT}[write into packages]", f"{WAYS_OUT}[write into bench]",
         f"{WAYS_OUT}[write into /usr]", played("writes-outside-its-folder")),
    ),
    TrustCase(
        47, "C", "ptrace, mount, namespaces, io_uring, keyctl, bpf; all as root and as a user.",
        "Refused by the kernel, with the same results.",
        (f"{WAYS_OUT}[trace]", f"{WAYS_OUT}[mount]", f"{WAYS_OUT}[new user namespace]",
         "sandbox/test_isolation.py::test_the_kernel_refuses_these_calls",
         played("traces-and-new-namespaces")),
        reason="`python -m tests.tools.hostile` plays all hostile submissions as either user.",
    ),
    TrustCase(
        48, "C", "Kills its parent, or everything.", "Only itself ends.",
        (f"{FORWARD}[killing its parent]", f"{FORWARD}[killing every process]",
         f"{WAYS_OUT}[kill process 1]"),
    ),
    TrustCase(
        49, "C", "Forged, repeated, early, oversized, truncated, garbage frames; closed channel.",
        "The protocol is violated, and the worker ends.",
        (f"{FORWARD}[random bytes on the channel]", f"{FORWARD}[a frame of a petabyte]",
         f"{FORWARD}[half a reply]", f"{FORWARD}[a reply to another request]",
         f"{FORWARD}[a closed channel]",
         f"{PROCESS}::test_a_reply_that_is_sent_twice_is_detected_at_the_next_request",
         "sandbox/test_protocol.py::test_random_bytes_raise_a_protocol_error",
         played("shape-beyond-any-integer")),
    ),
    TrustCase(
        50, "C", "Changes shared memory after its reply.", "No effect.",
        ("sandbox/test_defense_proxy.py::test_images_reach_a_sandboxed_defense_as_copies",
         "sandbox/test_protocol.py::test_tensors_are_sent_bit_for_bit"),
        reason="No memory is shared: tensors cross a socket.",
    ),
)  # fmt: skip
