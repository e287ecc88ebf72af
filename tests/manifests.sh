#!/bin/sh
# Whether the packages of tools/manifests.sh and npm's say the header's version, and whether a program finds the header with
# CMake: by FetchContent from this folder, and by find_package after an installation. Without cmake these are skipped. The last line is the sum.
set -e
top=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed() { echo "manifests: $*" >&2; exit 1; }

version=$(sed -n 's/^#define ML_VERSION_STRING "\(.*\)"/\1/p' "$top/minillama.h")
address=https://git.example/minillama
sh "$top/tools/manifests.sh" "$work/packages" "$address" >/dev/null
for wrong in "" minillama 'https://a.b/"'; do
    ! sh "$top/tools/manifests.sh" "$work/wrong" "$wrong" 2>/dev/null || failed "takes the address '$wrong'"
done
[ ! -e "$work/wrong" ] || failed "writes packages without an address"
for file in arduino/library.properties platformio/library.json esp-idf/idf_component.yml; do
    grep -q "$address" "$work/packages/$file" || failed "$file: no $address"
done
grep -q "^version=$version\$" "$work/packages/arduino/library.properties" || failed "library.properties: no $version"
grep -q "\"version\": \"$version\"" "$work/packages/platformio/library.json" || failed "library.json: no $version"
grep -q "^version: \"$version\"\$" "$work/packages/esp-idf/idf_component.yml" || failed "idf_component.yml: no $version"
grep -q "\"version\": \"$version\"" "$top/examples/web/package.json" || failed "the npm package.json: no $version"
for folder in arduino/src platformio/include esp-idf/include; do
    cmp -s "$top/minillama.h" "$work/packages/$folder/minillama.h" || failed "$folder has another header"
done
if command -v python3 >/dev/null; then
    python3 -m json.tool "$work/packages/platformio/library.json" >/dev/null || failed "library.json is no JSON"
fi
command -v cmake >/dev/null || {
    echo "skipped the programs built with CMake: there is no cmake"
    echo "1 passed, 0 failed, 1 skipped"
    exit 0
}

# program FOLDER LINES: a program that links the target, found as LINES say.
program() {
    mkdir -p "$work/$1"
    printf '#define MINILLAMA_IMPLEMENTATION\n#include <minillama.h>\n%s\n' \
        'int main(void) { puts(ml_type_name(ML_Q8_0)); return 0; }' > "$work/$1/main.c"
    printf 'cmake_minimum_required(VERSION 3.14)\nproject(program C)\n%s\n%s\n%s\n' "$2" 'add_executable(program main.c)' \
        'target_link_libraries(program PRIVATE minillama::minillama)' > "$work/$1/CMakeLists.txt"
    shift 2
}
build() {
    cmake -S "$work/$1" -B "$work/$1/build" -DCMAKE_PREFIX_PATH="$work/installed" > "$work/log" 2>&1 &&
        cmake --build "$work/$1/build" >> "$work/log" 2>&1 || { cat "$work/log"; failed "$1 does not build"; }
    [ "$("$work/$1/build/program")" = Q8_0 ] || failed "$1: wrong output"
}
program fetched "include(FetchContent)
FetchContent_Declare(minillama SOURCE_DIR $top)
FetchContent_MakeAvailable(minillama)"
build fetched
cmake -S "$top" -B "$work/self" -DCMAKE_INSTALL_PREFIX="$work/installed" > "$work/log" 2>&1 &&
    cmake --install "$work/self" >> "$work/log" 2>&1 || { cat "$work/log"; failed "installing fails"; }
program found "find_package(minillama ${version%.*} REQUIRED)"
build found
echo "3 passed, 0 failed, 0 skipped"
