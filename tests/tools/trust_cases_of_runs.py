"""Cases of faulty submissions, runs and databases."""

from __future__ import annotations

from tests.tools.trust_case_records import TrustCase

INTAKE, HOSTILE = "submissions/test_intake.py", "submissions/test_hostile_submissions.py"
STORE = "store"

SUBMISSIONS = (
    TrustCase(
        51, "D", "A zip bomb, a nested one, a million entries, lying sizes.",
        "Rejected with rule, limit and what was found.",
        (f"{INTAKE}::test_a_zip_that_breaks_a_rule_is_refused",
         f"{INTAKE}::test_a_zip_with_a_false_size_is_stopped_while_it_is_unpacked",
         "sandbox/test_hostile.py::test_a_faulty_archive_is_rejected[bomb]"),
    ),
    TrustCase(
        52, "D", "Names with .., absolute, backslash, drive, control characters, or the same "
        "but for case.",
        "Rejected.",
        (f"{INTAKE}::test_a_zip_that_breaks_a_rule_is_refused",
         f"{HOSTILE}::test_a_hostile_zip_is_refused_with_a_printable_message"),
    ),
    TrustCase(
        53, "D", "A symbolic link, hard link, device or pipe.", "Rejected.",
        (f"{INTAKE}::test_a_zip_that_breaks_a_rule_is_refused",
         f"{INTAKE}::test_a_submission_holds_plain_files_only"),
    ),
    TrustCase(
        54, "D", "A truncated, encrypted or wrong archive.", "Rejected.",
        (f"{INTAKE}::test_a_corrupt_zip_is_refused",
         f"{INTAKE}::test_a_file_that_is_not_a_zip_is_refused",
         f"{HOSTILE}::test_a_hostile_zip_is_refused_with_a_printable_message",
         "sandbox/test_hostile.py::test_a_faulty_archive_is_rejected[encrypted]",
         "sandbox/test_hostile.py::test_a_faulty_archive_is_rejected[truncated]"),
    ),
    TrustCase(
        55, "D", "A pickle that runs code, a pickled module, an empty, random or truncated `.pt`.",
        "Rejected; a submission holds safetensors only.",
        (f"{INTAKE}::test_an_invalid_weights_file_is_refused",
         f"{INTAKE}::test_a_zip_that_breaks_a_rule_is_refused",
         "sandbox/test_adapter.py::test_requests_for_weights_that_are_not_allowed_are_refused"),
    ),
    TrustCase(
        56, "D", "A giant tensor; safetensors with repeated keys, NaN, missing or other tensors.",
        "Rejected, and the key is named.",
        (f"{INTAKE}::test_an_invalid_weights_file_is_refused",
         f"{INTAKE}::test_a_submission_with_infinite_weights_is_rejected",
         "registry/test_weights_file.py::test_a_hostile_header_is_refused_with_a_short_message"),
    ),
    TrustCase(
        57, "D", "An image bomb; a corrupt, animated, rotated image; an odd mode.",
        "Refused by name, or read as documented.",
        ("plugins/datasets/test_image_folder.py::"
         "test_an_image_that_cannot_be_read_is_named_in_one_sentence",
         "plugins/datasets/test_image_folder.py::test_the_first_of_several_frames_is_read",
         "plugins/datasets/test_image_folder.py::test_the_exif_orientation_is_applied",
         "plugins/datasets/test_image_folder.py::"
         "test_modes_without_a_fixed_range_are_refused_by_name"),
    ),
    TrustCase(
        58, "D", "An `.npy` of objects, or with a giant header.",
        "Rejected; a submission holds no such file, and nothing reads one.",
        ("sandbox/test_hostile.py::test_no_array_file_is_accepted_or_read",),
    ),
    TrustCase(
        59, "D", "A card with a missing, unknown or wrong field, an unknown threat model, a "
        "future version.",
        "Rejected with field, expectation and nearest name.",
        (f"{INTAKE}::test_an_invalid_card_is_refused_with_the_field",
         f"{INTAKE}::test_a_claim_under_an_unknown_threat_model_is_rejected",
         f"{HOSTILE}::test_a_hostile_card_is_reported_and_affects_no_other_submission"),
    ),
    TrustCase(
        60, "D", "Names with SQL, HTML, Markdown, script links, bidirectional marks, formulas.",
        "Rejected or shown as text; a browser runs no script and asks no other host.",
        (f"{INTAKE}::test_an_invalid_card_is_refused_with_the_field",
         f"{INTAKE}::test_any_title_is_either_read_or_refused_with_a_message",
         "leaderboard/test_browser.py::test_a_hostile_name_causes_no_request_to_another_host",
         "leaderboard/test_pages.py::test_a_hostile_name_is_escaped_in_html",
         "leaderboard/test_hostile_texts.py::test_no_text_of_a_database_is_interpreted_on_a_page",
         "leaderboard/test_pages.py::test_a_hostile_name_is_never_rendered_as_markdown",
         "leaderboard/test_charts.py::test_downloads_hold_no_spreadsheet_formulas"),
    ),
    TrustCase(
        61, "D", "Two plugins of one name; a plugin that replaces a built-in or wraps a hook.",
        "Refused, and both are named.",
        ("registry/test_registry.py::"
         "test_of_two_plugins_with_one_name_the_first_is_used_and_both_are_named",
         "registry/test_registry.py::test_a_submission_cannot_take_a_built_in_name",
         "registry/test_registry.py::test_a_bad_plugin_gets_one_sentence_and_the_good_one_stays",
         f"{INTAKE}::test_a_built_in_name_is_rejected"),
    ),
)  # fmt: skip

RUNS = (
    TrustCase(
        62, "E", "kill -9 of a run at any moment.", "The next run goes on to the same table.",
        (f"{STORE}/test_kill.py::test_kill_9_loses_no_committed_outcome_and_repeats_none",
         "evaluation/test_launcher.py::test_twenty_kills_lose_no_outcome_and_change_none",
         "evaluation/test_cascade.py::test_kill_9_changes_no_report"),
    ),
    TrustCase(
        63, "E", "kill -9 of a worker process.", "The cell fails with the signal; the next call "
        "has a new worker with the same answers.",
        ("sandbox/test_defense_proxy.py::test_a_worker_that_has_died_is_replaced_by_an_equal_one",
         "sandbox/test_adapter.py::test_a_worker_that_dies_fails_its_cell_alone",
         f"{STORE}/test_leases.py::test_a_failed_task_may_be_tried_again"),
        reason="The next run tries the cell again, not the same one.",
    ),
    TrustCase(
        64, "E", "Two runs on one cell.", "One result; the other is refused by its fence.",
        (f"{STORE}/test_leases.py::test_of_many_simultaneous_requests_one_gets_the_lease",
         f"{STORE}/test_leases.py::test_a_late_owner_cannot_write_once_another_has_taken_over",
         "evaluation/test_launcher.py::test_two_runs_on_one_database_evaluate_each_cell_once"),
    ),
    TrustCase(
        65, "E", "A run that pauses beyond its lease and wakes.", "Its result is refused.",
        (f"{STORE}/test_leases.py::test_a_late_owner_cannot_write_once_another_has_taken_over",
         "evaluation/test_worker.py::"
         "test_a_cell_that_another_worker_has_taken_over_is_not_failed_here",
         f"{STORE}/test_leases.py::TestLeases"),
    ),
    TrustCase(
        66, "E", "The clock jumps by a day, or to summer time.", "No lost and no double outcome.",
        (f"{STORE}/test_lost_writes.py::test_a_clock_that_jumps_loses_and_doubles_no_outcome",
         f"{STORE}/test_lost_writes.py::test_a_change_to_summer_time_moves_no_lease"),
    ),
    TrustCase(
        67, "E", "The disk is full at a commit or an image file.",
        "Nothing committed is lost, and the cell can go on.",
        (f"{STORE}/test_database.py::"
         "test_a_full_disk_loses_no_committed_outcome_and_the_cell_can_go_on",
         f"{STORE}/test_waiting.py::test_a_full_disk_of_the_database_is_waited_for",
         f"{STORE}/test_waiting.py::test_a_full_disk_of_images_is_waited_for",
         f"{STORE}/test_images.py::test_images_that_cannot_be_written_leave_the_chunk_unrecorded"),
    ),
    TrustCase(
        68, "E", "Power is lost, with any part of the unsynced bytes.",
        "The database is consistent, and no acknowledged outcome is lost.",
        (f"{STORE}/test_lost_writes.py::test_a_power_loss_keeps_every_acknowledged_outcome",
         f"{STORE}/test_database.py::test_every_connection_is_durable"),
    ),
    TrustCase(
        69, "E", "The database is locked; twenty writers.", "They wait; then one clear sentence.",
        (f"{STORE}/test_database.py::test_a_locked_database_is_named",
         f"{STORE}/test_waiting.py::test_a_database_that_another_process_holds_is_waited_for",
         f"{STORE}/test_lost_writes.py::test_twenty_writers_are_served_one_after_the_other"),
    ),
    TrustCase(
        70, "E", "A damaged page, a truncated log, a missing or read-only file, a network disk.",
        "Found, with the remedy.",
        (f"{STORE}/test_integrity.py::test_a_damaged_page_is_found",
         f"{STORE}/test_database.py::test_a_file_that_is_no_database_is_refused_and_left_alone",
         f"{STORE}/test_database.py::test_a_path_that_cannot_be_written_is_refused",
         f"{STORE}/test_database.py::test_reading_a_missing_database_says_which_command_fills_it",
         f"{STORE}/test_lost_writes.py::test_a_power_loss_keeps_every_acknowledged_outcome",
         f"{STORE}/test_network_disk.py::test_a_network_disk_is_recognised",
         f"{STORE}/test_network_disk.py::"
         "test_a_database_on_a_network_disk_is_read_and_not_written"),
        reason="A network disk is recognised on Linux, by its file system; it is read, and a run "
        "refuses to write to it.",
    ),
    TrustCase(
        71, "E", "A database of a newer, older or half-migrated version.",
        "Refused, or upgraded with a backup; a kill leaves it untouched.",
        (f"{STORE}/test_database.py::test_a_newer_database_is_refused_and_left_alone",
         f"{STORE}/test_database.py::test_an_older_database_is_backed_up_and_then_upgraded",
         f"{STORE}/test_kill.py::"
         "test_a_kill_in_the_middle_of_a_migration_leaves_the_database_untouched"),
    ),
    TrustCase(
        72, "E", "An image file is missing or altered.", "`bench db check` names it.",
        (f"{STORE}/test_images.py::test_a_missing_or_altered_file_of_images_is_named",),
    ),
    TrustCase(
        73, "E", "A row is edited by hand.", "`bench db check` names it.",
        (f"{STORE}/test_integrity.py::test_a_changed_figure_is_named_with_both_values",
         f"{STORE}/test_integrity.py::test_an_edit_is_found_at_its_place",
         f"{STORE}/test_integrity.py::test_an_edit_with_its_seal_is_found_by_what_contradicts_it"),
    ),
    TrustCase(
        74, "E", "A plugin changes during a run.", "A new key; the old row is kept.",
        ("evaluation/test_worker.py::test_no_cell_is_evaluated_under_an_outdated_key",
         "evaluation/test_built_defense.py::"
         "test_the_key_changes_with_everything_that_may_change_a_verdict",
         "results/test_current_cells.py::test_a_changed_defense_leaves_no_cell_current"),
    ),
    TrustCase(
        75, "E", "A data set has changed or is missing.", "Refused by its digest.",
        ("data/test_datasets.py::test_a_test_half_that_differs_in_one_place_is_refused",
         "data/test_datasets.py::"
         "test_without_files_and_network_the_message_says_what_to_do"),
    ),
    TrustCase(
        76, "E", "Ctrl-C once, or twice.",
        "The run ends after its group, or at once; the next one goes on in the middle of the cell.",
        ("evaluation/test_stopping.py::test_the_first_signal_lets_a_run_finish_its_group",
         "evaluation/test_stopping.py::"
         "test_the_second_signal_stops_at_once_and_releases_the_lease",
         "evaluation/test_worker.py::test_an_interrupt_queues_submissions_and_releases_the_cell",
         "evaluation/test_launcher.py::test_an_interrupted_run_resumes_in_the_middle_of_a_cell"),
    ),
    TrustCase(
        77, "E", "A cell that always kills its worker.",
        "It fails after three attempts; the matrix is completed.",
        (f"{STORE}/test_leases.py::test_three_attempts_without_an_outcome_fail_a_cell",),
    ),
    TrustCase(
        78, "E", "The sandbox is missing or broken.",
        "Submitted code is not run; the message names the remedy.",
        ("sandbox/test_isolation.py::test_without_a_sandbox_the_code_of_a_submission_is_not_used",
         "sandbox/test_isolation.py::"
         "test_the_sandbox_is_started_to_find_out_whether_it_works",
         "sandbox/test_adapter.py::test_without_a_sandbox_a_run_reports_the_submission_and_the_"
         "reason"),
    ),
    TrustCase(
        79, "E", "A table of 10,000 cells beside an active writer.",
        "It is computed, and reader and writer do not wait for each other.",
        ("results/test_large_table.py::test_a_table_of_10000_cells_is_read_during_a_write",
         f"{STORE}/test_database.py::test_a_reader_reads_during_a_writers_transaction"),
    ),
    TrustCase(
        80, "E", "The same cell with another number of threads, batch size or order.",
        "The same outcomes.",
        ("evaluation/test_partial_cells.py::test_the_number_of_threads_changes_no_outcome",
         "evaluation/test_launcher.py::test_the_batch_size_changes_no_verdict",
         "evaluation/test_launcher.py::test_a_finished_cell_can_be_reproduced",
         "engine/test_machine.py::test_what_changes_roundings_changes_the_machine_class"),
        reason="Another GPU is another machine class, which each row states.",
    ),
)  # fmt: skip
