"""The known traps of stdio, the engine and Python (51 to 82), as traps.py has the others."""

from collections.abc import Mapping
from typing import Final

from tests.contract.pins import Pin, pin

STDIO: Final[Mapping[int, Pin]] = {
    51: pin(
        "Nobody waits for a fifo's reader longer than its limit.",
        "engine/test_stdio.py::test_open_waits_for_the_clients_reader",
        "engine/test_stdio.py::test_open_gives_up_when_no_reader_comes",
    ),
    52: pin(
        "Create and Start do not wait for a writer of stdin.",
        "engine/test_stdio.py::test_input_ends_only_after_close_io_and_the_last_writer",
        "engine/test_stdio.py::test_close_io_before_anybody_wrote_is_the_end",
        "contract/test_engine_and_io.py::test_trap_53_stdin_outlives_the_request_and_its_client",
    ),
    53: pin(
        "stdin is read for as long as the process lives, not for as long as a request.",
        "contract/test_engine_and_io.py::test_trap_53_stdin_outlives_the_request_and_its_client",
        "integration/test_stdio.py::test_close_io_ends_the_input",
    ),
    54: pin(
        "A log whose reader is gone costs records, never the shim.",
        "runtime/test_logger.py::test_a_reader_that_is_gone_for_good_is_no_error",
        "runtime/test_logger.py::test_what_is_written_while_containerd_restarts_is_kept",
        "integration/test_restart.py::test_containers_outlive_containerd",
    ),
    55: pin(
        "The shim holds the reading end of the client's fifos, so that output waits for the next client.",
        "engine/test_stdio.py::test_output_survives_a_client_that_goes_and_one_that_comes",
        "integration/test_stdio.py::test_reader_leaves_and_another_comes",
        "integration/test_restart.py::test_container_outlives_containerd_and_its_client",
    ),
    56: pin(
        "What cannot be written is read all the same, so that no container blocks.",
        "engine/test_pump.py::test_a_sink_that_breaks_is_drained",
        "engine/test_pump.py::test_a_sink_that_breaks_while_it_is_full_is_drained",
        "engine/test_pump.py::test_a_disk_that_is_full_is_drained",
    ),
    57: pin(
        "A CloseIO that comes before there is a stdin is remembered.",
        "engine/test_stdio.py::test_close_io_before_there_is_stdio_is_remembered",
        "engine/test_stdio.py::test_close_io_before_open_counts",
        "engine/test_checkpoint.py::test_input_that_ended_before_a_restore_is_remembered",
        "integration/test_stdio.py::test_close_io_before_start",
    ),
    58: pin(
        "A terminal that nobody has open is not at its end until its process has exited.",
        "engine/test_pump.py::test_a_terminal_nobody_has_open_is_not_over",
        "engine/test_pump.py::test_a_terminals_last_words_come_through",
    ),
    59: pin(
        "One file for both outputs is opened once, and appended to.",
        "engine/test_stdio.py::test_a_plain_file_for_both_outputs_is_opened_once",
        "engine/test_stdio.py::test_a_file_takes_both_outputs",
        "engine/test_pump.py::test_a_file_takes_everything",
        "integration/test_stdio.py::test_file_log",
    ),
    60: pin(
        "An output without a path is /dev/null.",
        "engine/test_stdio.py::test_only_what_is_wanted_has_a_pipe",
        "integration/test_stdio.py::test_one_output_only",
    ),
    61: pin(
        "No descriptor of the shim reaches an engine or a container but those that are meant to.",
        "engine/test_stdio.py::test_every_descriptor_is_close_on_exec",
        "runtime/reaping.py::a_spawned_child_starts_clean",
        "contract/test_engine_and_io.py::test_rule_7_1_a_runtime_has_no_descriptor_of_the_shim",
        "engine/test_console.py::test_receive_takes_one_descriptor",
    ),
    62: pin(
        "A temporary folder with too long a path is passed over for the console's socket.",
        "engine/test_console.py::test_a_long_runtime_folder_is_passed_over",
    ),
    63: pin(
        "A process without stdio may read and write.",
        "contract/test_engine_and_io.py::test_trap_63_a_process_without_stdio_may_read_and_write",
        "integration/test_stdio.py::test_null_io",
        "engine/test_runc.py::test_a_container_gets_the_descriptors_it_was_given",
    ),
}

ENGINE: Final[Mapping[int, Pin]] = {
    64: pin(
        "NOTIFY_SOCKET does not reach the engine.",
        "runtime/reaping.py::a_spawned_child_starts_clean",
    ),
    65: pin(
        "An engine lives on when the thread that started it ends; the delete action ends one that outlives the daemon.",
        "runtime/reaping.py::a_child_outlives_the_thread_that_spawned_it",
        "engine/test_shim.py::test_delete_lets_no_create_outlive_its_daemon",
        "integration/test_delete.py::test_delete_action_during_a_create",
        "integration/test_delete.py::test_delete_action_during_a_create_that_hangs",
    ),
    66: pin(
        "A request that ends early stops no engine half way; one that is killed for its time is rolled back.",
        "engine/test_whole_life.py::test_a_client_that_goes_during_create_leaves_a_container",
        "engine/test_limits.py::test_a_create_that_hangs_half_way_is_rolled_back",
        "integration/test_faults.py::test_runtime_that_hangs",
    ),
    67: pin(
        "A failure is never told in the words of an older one.",
        "engine/test_runc.py::test_an_old_error_is_not_told_again",
        "engine/test_runc.py::test_last_error_reads_from_an_offset_in_bytes",
        "integration/test_faults.py::test_runtime_that_fails",
    ),
    68: pin(
        "The engine's log is a stream of JSON values in any layout, with their keys in any order.",
        "engine/test_runc.py::test_a_failure_is_told_in_the_runtimes_words",
        "engine/test_runc.py::test_last_error_of_records_that_are_no_records",
    ),
    69: pin(
        "Overlay options of more than a page are made relative by a thread that goes there alone.",
        "integration/test_host_mounts.py::test_overlay_with_more_than_a_page_of_layers",
        "integration/test_host_mounts.py::test_overlay_whose_layers_never_fit",
        "host/test_mount_options.py::test_compact_lowerdirs_keeps_every_folder",
    ),
    70: pin(
        "A mount helper's exit comes through the reaper, which cannot be faster than who waits for it.",
        "contract/test_fuse.py::test_trap_70_a_mount_helper_is_waited_for_by_the_reaper",
        "integration/test_contract.py::test_trap_70_a_root_that_a_helper_mounts",
        "contract/test_python.py::test_trap_76_nobody_but_the_reaper_waits_for_children",
        "runtime/reaping_spawns.py::an_exit_before_the_spawn_returns_is_the_childs",
        "runtime/reaping.py::spawns_and_reaps_may_race",
    ),
    71: pin(
        "What crun says of a container that is gone means the same as what runc says.",
        "engine/test_runc.py::test_kill_error_maps_what_runtimes_say",
        "engine/test_runc.py::test_a_container_that_is_gone_counts_as_deleted",
        "engine/test_runc.py::test_processes_are_read_as_runc_and_crun_print_them",
    ),
    72: pin(
        "Unknown keys of options.json are passed over.",
        "contract/test_engine_and_io.py::test_trap_72_and_73_delete_takes_options_as_they_come",
    ),
    73: pin(
        "The delete action never says --systemd-cgroup.",
        "contract/test_engine_and_io.py::test_trap_72_and_73_delete_takes_options_as_they_come",
        "engine/test_shim.py::test_delete_kills_what_is_left",
    ),
}

PYTHON: Final[Mapping[int, Pin]] = {
    74: pin(
        "Every child starts with default signals and an empty mask.",
        "runtime/reaping.py::a_spawned_child_starts_clean",
    ),
    75: pin(
        "Nothing forks once there are threads.",
        "contract/test_python.py::test_trap_75_nothing_forks_once_there_are_threads",
    ),
    76: pin(
        "Only the reaper waits for children, and an exit that comes before the spawn returns is still that spawn's.",
        "contract/test_python.py::test_trap_76_nobody_but_the_reaper_waits_for_children",
        "runtime/reaping_spawns.py::an_exit_before_the_spawn_returns_is_the_childs",
        "runtime/reaping.py::spawns_and_reaps_may_race",
        "test_layers.py::test_imports_of_a_module_point_left",
        "test_import_budget.py::test_daemon_modules_stay_within_the_import_budget",
    ),
    77: pin(
        "A fifo that has no writer yet is not at its end, and waiting for one blocks nobody.",
        "contract/test_python.py::test_trap_77_no_daemon_reads_fifos_with_asyncio",
        "engine/test_stdio.py::test_input_ends_only_after_close_io_and_the_last_writer",
        "engine/test_stdio.py::test_close_io_before_open_counts",
    ),
    78: pin(
        "Each action loads only what it needs.",
        "test_import_budget.py::test_daemon_modules_stay_within_the_import_budget",
        "host/test_mount.py::test_unmount_recursive_of_nothing_does_not_load_ctypes",
        "integration/test_frozen.py::test_binary_is_small",
    ),
    79: pin(
        "The daemon lives on, and runs engines, when its first bundle is gone.",
        "contract/test_engine_and_io.py::test_trap_79_the_first_bundle_goes_while_the_shim_lives",
        "integration/test_daemonize.py::test_daemon_outlives_its_first_bundle",
    ),
    80: pin(
        "A log that nobody reads blocks nobody: records are dropped.",
        "runtime/test_logger.py::test_a_full_pipe_drops_records_and_blocks_nobody",
    ),
    81: pin(
        "The daemon is started again by the words that started it, and needs no unpacked file of another process.",
        "integration/test_daemonize.py::test_daemon_needs_no_unpacked_files",
        "integration/test_daemonize.py::test_daemon_shows_its_flags",
        "integration/test_frozen.py::test_daemon_answers_everything_without_its_files",
        "integration/test_frozen.py::test_daemon_survives_an_upgrade",
    ),
    82: pin(
        "Modes are the contract's whatever the umask, and names keep their bytes whatever the locale.",
        "contract/test_engine_and_io.py::test_trap_82_modes_are_what_the_contract_says_whatever_the_umask",
        "integration/test_contract.py::test_trap_82_rootfs_is_passable_whatever_the_umask",
        "integration/test_daemonize.py::test_address_file_is_written_for_legacy_callers",
        "runtime/test_legacy.py::test_the_file_holds_the_address_and_nothing_else",
        "integration/test_frozen.py::test_text_is_utf8_whatever_the_locale",
        "runtime/test_address.py::test_socket_path_takes_names_that_are_no_text",
    ),
}
