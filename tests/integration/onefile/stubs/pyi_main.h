/* What embed.c has of PyInstaller's process levels. */
#define PYI_PROCESS_LEVEL_PARENT_NEEDS_RESTART (-1)
