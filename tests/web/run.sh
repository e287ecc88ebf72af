#!/bin/sh
# run.sh: the tests of build/web, in Node and in Chromium. What the machine lacks is skipped, with a sentence; nothing is
# installed. playwright-core is looked for here, in the folder that PLAYWRIGHT names (its node_modules), and globally.
build=${BUILD:-build}
here=$(dirname "$0")
if ! command -v node >/dev/null; then
    echo "skipped: node is not installed"
    exit 0
fi
status=0
node "$here/test_node.mjs" "$build" || status=1
chromium=${CHROMIUM:-$(command -v chromium || command -v chromium-browser || command -v google-chrome)}
if [ -z "$chromium" ]; then
    echo "skipped test_page: no Chromium (CHROMIUM=path names one)"
else
    CHROMIUM=$chromium NODE_PATH=$PLAYWRIGHT:$(npm root -g 2>/dev/null) node "$here/test_page.mjs" "$build" || status=1
fi
exit $status
