#!/usr/bin/env bash
# What a compiler does not see: the direction of includes, doors of libraries, unfinished marks, paths of somebody's
# machine. Prints each offending line; exit status 1 when there is one.
set -u
cd "$(dirname "$0")/.." || exit 1
status=0

# fail_on TITLE: standard input holds the offending lines.
fail_on() {
  local lines
  lines=$(cat)
  [ -z "$lines" ] && return
  printf '%s:\n%s\n' "$1" "$lines"
  status=1
}
code() { git ls-files -- "$@" | grep -E '\.(cc|h|proto)$'; }
# lines_in PATTERN FOLDER...
lines_in() {
  local pattern=$1
  shift
  code "$@" | xargs -r grep -nE "$pattern"
}

# An arrow points at what may be included: examples -> recipes -> trainer -> data -> ops.
fail_on 'ops/ includes a folder above it' < <(lines_in '#include "(data|trainer|recipes|examples|tests|benchmarks)/' ops)
fail_on 'data/ includes a folder above it' < <(lines_in '#include "(trainer|recipes|examples|tests|benchmarks)/' data)
fail_on 'trainer/ includes a folder above it' < <(lines_in '#include "(recipes|examples|tests|benchmarks)/' trainer)
fail_on 'recipes/ includes a folder above it' < <(lines_in '#include "(examples|tests|benchmarks)/' recipes)

sources=(ops data trainer recipes examples)
fail_on 'OpenMP outside ops/parallel.*' < <(lines_in '#pragma omp|\bomp_|#include <omp' "${sources[@]}" | grep -v '^ops/parallel\.')
fail_on 'HDF5 outside data/hdf5_*.cc' < <(lines_in '#include <hdf5|#include "hdf5' "${sources[@]}" | grep -vE '^data/hdf5_[a-z]+\.cc:')
fail_on 'PCRE2 outside data/regex.cc' < <(lines_in '#include <pcre2|#include "pcre2' "${sources[@]}" | grep -v '^data/regex\.cc:')
fail_on 'gflags outside recipes/' < <(lines_in '#include [<"]gflags/' "${sources[@]}" | grep -v '^recipes/')

everything=("${sources[@]}" tests benchmarks)
fail_on 'Header without #pragma once' < <(git ls-files '*.h' | grep -v -- '-inl\.h$' | xargs -r grep -L '#pragma once')
fail_on 'Unfinished' < <(lines_in '\b(TODO|FIXME|XXX)\b|not implemented|placeholder' "${everything[@]}")
fail_on 'Files over 400 lines' < <(code "${sources[@]}" | xargs -r wc -l | awk '$2 != "total" && $1 > 400')
# Tests may name files in the home of nobody.
fail_on 'A path of one machine' < <(git ls-files -z | xargs -0 -r grep -nIE '(^|[^A-Za-z0-9_.-])/(home|Users|root|work)/' -- |
  grep -vE '^tests/.*/home/me/')

exit $status
