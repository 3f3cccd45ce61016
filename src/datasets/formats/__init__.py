"""Readers of annotation files, one group of formats a module; `registry` finds the right one."""
