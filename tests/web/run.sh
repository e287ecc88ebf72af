#!/bin/sh
# run.sh: the tests of build/web, in Node and in Chromium, and of its types. What the machine lacks is skipped, with a
# sentence; nothing is installed. playwright-core is looked for here, in the folder that PLAYWRIGHT names (its
# node_modules), and globally; TypeScript's tsc in the same folder and on the path (TSC=path names one).
build=${BUILD:-build}
here=$(dirname "$0")
if ! command -v node >/dev/null; then
    echo "skipped: node is not installed"
    exit 0
fi
status=0
node "$here/test_node.mjs" "$build" || status=1

tsc=${TSC:-$(command -v tsc)}
if [ -z "$tsc" ] && [ -x "$PLAYWRIGHT/.bin/tsc" ]; then tsc=$PLAYWRIGHT/.bin/tsc; fi
if [ -z "$tsc" ]; then
    echo "skipped types: no TypeScript (TSC=path names its tsc)"
else
    project=$(mktemp -d) # that has the package
    mkdir "$project/node_modules"
    ln -s "$(cd "$build" && pwd)/web" "$project/node_modules/minillama"
    cp "$here/types.ts" "$project"
    echo '{ "type": "module" }' >"$project/package.json"
    failed=0
    for lib in dom webworker; do # of a page, and of its workers
        (cd "$project" && "$tsc" --strict --noEmit --target es2022 --module nodenext --lib "es2022,$lib" --types "" types.ts) || failed=$((failed + 1))
    done
    rm -r "$project"
    echo "types: $((2 - failed)) passed, $failed failed, 0 skipped"
    [ $failed = 0 ] || status=1
fi

chromium=${CHROMIUM:-$(command -v chromium || command -v chromium-browser || command -v google-chrome)}
if [ -z "$chromium" ]; then
    echo "skipped test_page: no Chromium (CHROMIUM=path names one)"
else
    CHROMIUM=$chromium NODE_PATH=$PLAYWRIGHT:$(npm root -g 2>/dev/null) node "$here/test_page.mjs" "$build" || status=1
fi
exit $status
