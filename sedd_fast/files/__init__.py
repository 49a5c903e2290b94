"""Files of the package: written whole, and verified when they are read.

writing        a file, or a set of files with its list of SHA-256 sums, appears whole or not at all
checksums      the list of sums of a set of files, which `sha256sum -c` reads, too
pickles        torch.save and torch.load; the CRC-32 of every record is compared
documents      JSON and YAML from anyone: bounded, strict, errors in one line
paths          ~ and ~USER in the path that a user writes
hub            names: a path here, or a repository of the Hugging Face Hub, which may not answer
"""
