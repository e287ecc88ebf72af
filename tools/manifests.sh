#!/bin/sh
# Writes what package managers want beside minillama.h, from what the header itself says: library.properties (Arduino),
# library.json (PlatformIO), idf_component.yml and a CMakeLists.txt (ESP-IDF). Each folder is a package as it is to be
# published, with the header in it.
#
#   sh tools/manifests.sh FOLDER ADDRESS        or: make manifests MANIFEST_URL=ADDRESS (into build/packages)
#
# ADDRESS is where the header is published, https://...: registries want one, and only its publisher knows it.
#
# CMake needs none of this: the CMakeLists.txt at the top is for FetchContent and find_package.
set -e
[ $# -eq 2 ] || { echo "usage: manifests.sh FOLDER ADDRESS (where it is published, https://...)" >&2; exit 2; }
case $2 in
https://?*.?*) ;;
*) echo "manifests.sh: where is it published? An address is https://..., not \"$2\"" >&2; exit 2 ;;
esac
case $2 in *[!A-Za-z0-9._~:/@%+-]*) echo "manifests.sh: the address \"$2\" has a character that none has" >&2; exit 2 ;; esac
top=$(dirname "$0")/..
to=$1 url=$2
version=$(sed -n 's/^#define ML_VERSION_STRING "\(.*\)"/\1/p' "$top/minillama.h")
[ -n "$version" ] || { echo "minillama.h has no ML_VERSION_STRING" >&2; exit 1; }
name=minillama
license='MIT-0 OR Unlicense' # see LICENSE
sentence='Loads, runs and trains small Llamas: one C header without dependencies.'
paragraph='GGUF, safetensors and PyTorch files; weights used in place from flash; a KV cache of 8 bits; LoRA and heads trained on the device.'

mkdir -p "$to/arduino/src" "$to/platformio/include" "$to/esp-idf/include"
cp "$top/minillama.h" "$to/arduino/src"
cp "$top/minillama.h" "$to/platformio/include"
cp "$top/minillama.h" "$to/esp-idf/include"
for folder in arduino platformio esp-idf; do cp "$top/LICENSE" "$to/$folder"; done

cat > "$to/arduino/library.properties" <<END
name=$name
version=$version
author=the authors of $name
maintainer=the authors of $name
sentence=$sentence
paragraph=$paragraph
category=Data Processing
url=$url
architectures=esp32,esp8266,rp2040,mbed,mbed_nano,mbed_rp2040,mbed_portenta,mbed_giga,renesas_uno,renesas_portenta,sam,samd,stm32,nrf52,teensy
includes=minillama.h
END

cat > "$to/platformio/library.json" <<END
{
  "name": "$name",
  "version": "$version",
  "description": "$sentence $paragraph",
  "keywords": "llama, language model, inference, training, tinyml",
  "license": "$license",
  "repository": {"type": "git", "url": "$url"},
  "frameworks": "*",
  "platforms": "*",
  "headers": "minillama.h",
  "build": {"includeDir": "include"}
}
END

cat > "$to/esp-idf/idf_component.yml" <<END
version: "$version"
description: "$sentence"
url: "$url"
license: "$license"
dependencies:
  idf: ">=4.4"
END

cat > "$to/esp-idf/CMakeLists.txt" <<END
idf_component_register(INCLUDE_DIRS include)
END
echo "$name $version: $to/arduino, $to/platformio, $to/esp-idf"
