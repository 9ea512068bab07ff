/* What embed.c has of PyInstaller's archives; an entry is laid out as in a file. */
#ifndef STUB_PYI_ARCHIVE_H
#define STUB_PYI_ARCHIVE_H
#include <stdint.h>

struct TOC_ENTRY {
    uint32_t entry_length, offset, length, uncompressed_length;
    unsigned char compression_flag;
    char typecode;
    char name[64];
};

struct ARCHIVE {
    uint64_t pkg_offset;
};
#endif
