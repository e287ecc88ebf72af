/* Reads trees of labeled phrases. */
#include <limits.h>
#include "trees.h"
#include "../../common/file.h"

enum { TREES_MAX_DEPTH = 1024 };

enum { NODE_EMPTY, NODE_WORD, NODE_NODES };

typedef struct tree_node {
    int begin, label, content;
} tree_node;

/* A line being read. */
typedef struct tree_reader {
    trees *all;
    const char *path;
    int line, n_labels;
    char *from, *to; /* the rest of the line; where its words are written, which is never behind it */
    int n_words, depth;
    tree_node open[TREES_MAX_DEPTH];
} tree_reader;

static int wrong(const tree_reader *r, const char *what) {
    return complain("%s:%d: %s, at \"%.20s\"", r->path, r->line, what, r->from);
}

/* Everything that the node around may hold. */
static int put_inside(tree_reader *r, int content) {
    tree_node *around = r->depth ? &r->open[r->depth - 1] : NULL;
    if (around && (around->content == NODE_WORD || (around->content && content == NODE_WORD)))
        return wrong(r, "a node is one word or nodes, and this one has more");
    if (around) around->content = content;
    return 1;
}

/* "(3 " */
static int open_node(tree_reader *r) {
    tree_node node = {r->n_words, 0, NODE_EMPTY};
    char *end;
    if (r->depth == TREES_MAX_DEPTH) return wrong(r, "the tree is deeper than 1024 nodes");
    if (!put_inside(r, NODE_NODES)) return 0;
    long label = r->from[1] >= '0' && r->from[1] <= '9' ? strtol(r->from + 1, &end, 10) : -1;
    if (label < 0 || label >= r->n_labels || *end != ' ') {
        complain("%s:%d: no label of 0 to %d after the bracket, at \"%.20s\"", r->path, r->line,
                 r->n_labels - 1, r->from);
        return 0;
    }
    node.label = (int)label;
    r->open[r->depth++] = node;
    r->from = end;
    return 1;
}

static int put_word(tree_reader *r) {
    size_t n = strcspn(r->from, " ()");
    if (!r->depth) return wrong(r, "a word outside of the tree");
    if (!put_inside(r, NODE_WORD)) return 0;
    if (r->n_words++) *r->to++ = ' ';
    memmove(r->to, r->from, n);
    r->to += n;
    r->from += n;
    return 1;
}

static int close_node(tree_reader *r) {
    trees *all = r->all;
    if (!r->depth) return wrong(r, "a bracket closes what was not opened");
    tree_node node = r->open[r->depth - 1];
    if (!node.content) return wrong(r, "a node without a word");
    phrase *room = (phrase *)grow(all->phrases, all->n_phrases + 1, &all->phrases_capacity, sizeof *room);
    if (!room || all->n_phrases >= INT_MAX) return no_memory(r->path);
    all->phrases = room;
    phrase closed = {node.begin, r->n_words, node.label, 1};
    room[all->n_phrases++] = closed;
    r->depth--;
    r->from++;
    return 1;
}

/* All of the line. Its words are moved to its beginning. */
static int read_tree(tree_reader *r) {
    char *begin = r->from;
    int is_closed = 0, ok = 1;
    r->to = begin;
    while (ok && *(r->from += strspn(r->from, " \t"))) {
        if (is_closed) return wrong(r, "text after the tree");
        ok = *r->from == '(' ? open_node(r) : *r->from == ')' ? close_node(r) : put_word(r);
        is_closed = !r->depth;
    }
    if (ok && r->depth)
        return complain("%s:%d: the tree ends with %d open brackets", r->path, r->line, r->depth);
    *r->to = 0;
    return ok;
}

static int add_sentence(tree_reader *r, const char *text) {
    trees *all = r->all;
    reviews *set = &all->set;
    review *rows = (review *)grow(set->rows, (size_t)set->n + 1, &set->capacity, sizeof *rows);
    if (rows) set->rows = rows;
    int *first = (int *)grow(all->first, (size_t)set->n + 2, &all->first_capacity, sizeof *first);
    if (first) all->first = first;
    if (!rows || !first) return no_memory(r->path);
    memset(&rows[set->n], 0, sizeof *rows);
    rows[set->n].sentence = text;
    rows[set->n].label = all->phrases[all->n_phrases - 1].label;
    first[0] = 0;
    first[++set->n] = (int)all->n_phrases;
    return 1;
}

int trees_read(trees *all, const char *path, int n_labels) {
    tree_reader r;
    memset(&r, 0, sizeof r);
    memset(all, 0, sizeof *all);
    all->set.path = r.path = path;
    all->set.text = text_file_read(path, NULL);
    r.all = all;
    r.n_labels = n_labels;
    for (char *line = all->set.text, *next; line && *line; line = next) {
        r.line++;
        next = strchr(line, '\n');
        if (next) *next++ = 0;
        if (!line[strspn(line, " \t")]) continue;
        r.from = line;
        r.n_words = r.depth = 0;
        if (!read_tree(&r) || !add_sentence(&r, line)) return 0;
    }
    return all->set.text && (all->set.n > 0 || complain("%s: it has no lines", path));
}

void trees_free(trees *all) {
    reviews_free(&all->set);
    free(all->phrases);
    free(all->first);
    memset(all, 0, sizeof *all);
}
