/* The page of the lessons stays true: it has a part for each lesson, with its picture; each lesson is as short as it
   promises and has an exercise that can be taken out of its solution; the functions that the page names are in the
   sections of minillama.h that it names; a copy of an exercise is never lost. (make lessons runs the programs.) */
#include "preamble.h"
#include "folder.h"
#include <dirent.h>

#define LESSONS "examples/lessons"

/* Text of a file, zero-terminated; the caller frees it. */
static char *text_of(const char *path) {
    bytes b = read_file(path);
    put_u8(&b, 0);
    return (char *)b.data;
}

/* Lesson n's file name in its folder, "07_attention.c"; empty if there is none. */
static const char *lesson_file(int n) {
    static char name[256];
    char start[8];
    snprintf(start, sizeof start, "%02d_", n);
    DIR *items = opendir(LESSONS);
    name[0] = 0;
    for (struct dirent *item; items && (item = readdir(items)) != NULL;)
        if (strncmp(item->d_name, start, 3) == 0) snprintf(name, sizeof name, "%s", item->d_name);
    if (items) closedir(items);
    return name;
}

static int count_lines(const char *text) {
    int n = 0;
    for (; *text; text++) n += *text == '\n';
    return n;
}

TEST(lessons_are_as_short_as_they_promise) {
    char *plain = text_of(LESSONS "/plain_llama.h");
    int n_plain = count_lines(plain); /* the network in plain loops: the header and lessons 8 and 9 */
    free(plain);
    CHECK(n_plain > 0);
    for (int n = 1; n <= 12; n++) {
        char path[512], words[64];
        snprintf(path, sizeof path, LESSONS "/%s", lesson_file(n));
        char *text = text_of(path);
        CHECK(count_lines(text) <= (n == 8 || n == 9 ? 180 : 120));
        if (n == 8 || n == 9) n_plain += count_lines(text);
        CHECK(strncmp(text, "/* Lesson ", 10) == 0 && atoi(text + 10) == n);
        snprintf(words, sizeof words, "make exercise-%02d", n);
        const char *exercises = strstr(text, "/* EXERCISES");
        CHECK(exercises && strstr(exercises, words) && strstr(text, "lesson_end()"));
        free(text);
    }
    CHECK(n_plain <= 350);
}

/* Each "your turn" has its "end", in this order. */
TEST(solutions_have_markers) {
    for (int n = 1; n <= 12; n++) {
        char path[64];
        int turns = 0;
        snprintf(path, sizeof path, LESSONS "/solutions/%02d.c", n);
        char *text = text_of(path), *at = text;
        while ((at = strstr(at, "/* your turn: ")) != NULL) {
            char *end = strstr(at, "/* end */"), *next = strstr(at + 1, "/* your turn");
            CHECK(end && (!next || end < next));
            turns++, at++;
        }
        CHECK(turns > 0);
        free(text);
    }
}

TEST(the_page_has_a_part_and_a_picture_for_each_lesson) {
    char *page = text_of(LESSONS "/README.md");
    for (int n = 1; n <= 12; n++) {
        char words[64], path[64];
        snprintf(words, sizeof words, "\n## %d ", n);
        CHECK(strstr(page, words) != NULL);
        snprintf(words, sizeof words, "](pictures/%02d.svg)", n);
        CHECK(strstr(page, words) != NULL);
        snprintf(path, sizeof path, LESSONS "/pictures/%02d.svg", n);
        char *picture = text_of(path);
        CHECK(strncmp(picture, "<svg ", 5) == 0 && strstr(picture, "</svg>") != NULL);
        free(picture);
    }
    free(page);
}

/* Whether a section of the header, which it may have twice, defines or declares this function. */
static int section_has(const char *header, const char *section, const char *name) {
    char start[80], call[80];
    snprintf(start, sizeof start, "/* ==== >>%s ====", section);
    snprintf(call, sizeof call, " %s(", name);
    for (const char *at = header; (at = strstr(at, start)) != NULL; at++) {
        const char *end = strstr(at + 1, "/* ==== >>"), *found = strstr(at, call);
        for (; found && (!end || found < end); found = strstr(found + 1, call)) {
            const char *line = found; /* a function's name is in a line that begins with its type */
            while (line > header && line[-1] != '\n') line--;
            if (strncmp(line, "static ", 7) == 0 || strncmp(line, "ML", 2) == 0)
                return 1; /* ML_DEF, MLI_... */
        }
    }
    return 0;
}

TEST(the_functions_that_the_page_names_are_where_it_says) {
    char *page = text_of(LESSONS "/README.md"), *header = text_of("minillama.h");
    char section[64] = "", name[64];
    int n_functions = 0, n_read_on = 0;
    for (const char *at = page; *at; at++) {
        if (strncmp(at, "Read on", 7) == 0) n_read_on++, section[0] = 0;
        if (strncmp(at, ">>", 2) == 0)
            snprintf(section, sizeof section, "%.*s", (int)strspn(at + 2, "abcdefghijklmnopqrstuvwxyz"),
                     at + 2);
        if (strncmp(at, "`ml", 3) != 0) continue;
        size_t n = strcspn(at + 1, "`");
        snprintf(name, sizeof name, "%.*s", (int)n, at + 1);
        if (name[strspn(name, "abcdefghijklmnopqrstuvwxyz_0123456789")]) continue; /* not a function */
        CHECK(section_has(header, section, name));
        if (!section_has(header, section, name)) printf("%s is not in >>%s\n", name, section);
        n_functions++, at += n;
    }
    CHECK(n_functions >= 36 && n_read_on >= 12);
    free(page), free(header);
}

/* How often a text has this name, not as a part of a longer one. */
static int count_name(const char *text, const char *name) {
    const char *letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789";
    size_t n = strlen(name);
    int count = 0;
    for (const char *at = text; (at = strstr(at, name)) != NULL; at += n)
        count += at > text && !strchr(letters, at[-1]) && at[n] && !strchr(letters, at[n]);
    return count;
}

/* A function that nothing calls is on no walk through the code. */
TEST(the_walk_names_what_the_header_uses) {
    char *page = text_of("CONTRIBUTING.md"), *header = text_of("minillama.h"), name[64];
    int n_names = 0;
    for (const char *at = page; (at = strstr(at, "`mli_")) != NULL; at++, n_names++) {
        snprintf(name, sizeof name, "%.*s", (int)strcspn(at + 1, "`"), at + 1);
        if (strcmp(name, "mli_") == 0) continue; /* the prefix itself */
        CHECK(count_name(header, name) >= 2);
        if (count_name(header, name) < 2) printf("%s is not used\n", name);
    }
    CHECK(n_names >= 100);
    free(page), free(header);
}

TEST(contributing_names_who_uses_private_names) {
    char *page = text_of("CONTRIBUTING.md"), named[300];
    int n_files = 0;
    if (WITHOUT_SH) SKIP("no shell");
    REQUIRE(folder_begin("lessons"));
    capture_begin();
    int status =
        system("grep -l -i mli_ examples/*.c examples/*/*.[ch] examples/*/*/*.[ch] tools/*.c tools/*/*.[ch]");
    const char *said = capture_end(), *rule = strstr(page, "use no private name");
    CHECK(status == 0 && rule);
    for (const char *end; rule && (end = strchr(said, '\n')) != NULL; said = end + 1, n_files++) {
        snprintf(named, sizeof named, "`%.*s`", (int)(end - said), said);
        const char *at = strstr(rule, named);
        CHECK(at && at < strstr(rule, "\n\n"));
        if (!at) printf("%s is not in CONTRIBUTING.md\n", named);
    }
    CHECK(n_files > 0);
    folder_end(), free(page);
}

/* ---- a student's copy ---- */

/* A folder with a copy in build/exercises, beside what is only built; 0: without make nothing can be tested. */
static int has_copy(void) {
    if (!folder_begin("lessons")) return 0;
    if (!has_make()) return folder_end(), 0;
    CHECK(make_folder(in_folder("build")) && make_folder(in_folder("build/exercises")) &&
          make_folder(in_folder("build/.hidden")));
    write_file(in_folder("build/exercises/07.c"), "mine", 4);
    write_file(in_folder("build/minillama.o"), "", 0);
    return 1;
}

TEST(make_clean_keeps_a_copy) {
    if (!has_copy()) SKIP("no GNU make");
    const char *said = make_says("", "Makefile", "clean");
    CHECK(said && strstr(said, "kept: ") && strstr(said, "build/exercises"));
    bytes copy = read_file(in_folder("build/exercises/07.c"));
    CHECK(copy.size == 4 && memcmp(copy.data, "mine", 4) == 0);
    free_bytes(&copy);
    CHECK(!exists(in_folder("build/minillama.o")) && !exists(in_folder("build/.hidden")));
    remove(in_folder("build/exercises/07.c"));
    said = make_says("", "Makefile", "clean");
    CHECK(said && !*said && !exists(in_folder("build")));
    folder_end();
}

/* What make would run where a teacher has taken the solutions away. */
TEST(a_copy_works_without_its_solution) {
    if (!has_copy()) SKIP("no GNU make");
    CHECK(make_folder(in_folder("examples")) && make_folder(in_folder(LESSONS)));
    write_file(in_folder(LESSONS "/lesson.h"), "", 0);
    const char *said = make_says("", "Makefile", "-n -o build/minillama.o exercise-07");
    CHECK(said && strstr(said, "-o build/exercises/07 build/exercises/07.c build/minillama.o") &&
          strstr(said, "run.sh exercise build/exercises/07 build/exercises/07.c"));
    CHECK(!make_says("", "Makefile", "-n exercise-08")); /* there is no copy */
    folder_end();
}

/* A copy that was deleted, or never made where the solutions are not there, is no fault of what is written in it. */
TEST(grade_tells_a_missing_copy_from_a_wrong_one) {
    char command[1200];
    if (!has_copy()) SKIP("no GNU make");
    snprintf(command, sizeof command, "sh " LESSONS "/run.sh grade '%s' rope:06 model:07",
             in_folder("build/exercises"));
    capture_begin();
    int status = system(command);
    const char *said = capture_end();
    CHECK(status != 0 && strstr(said, "0 of 2 parts passed"));
    CHECK(strstr(said, "06             there is no copy ") && strstr(said, "build/exercises/06.c\n"));
    CHECK(strstr(said, "07             does not compile: make exercise-07 says why\n"));
    folder_end();
}

int main(void) {
    if (access(LESSONS "/README.md", R_OK) != 0) return printf("run from the top folder\n"), 1;
    RUN(lessons_are_as_short_as_they_promise);
    RUN(solutions_have_markers);
    RUN(the_page_has_a_part_and_a_picture_for_each_lesson);
    RUN(the_functions_that_the_page_names_are_where_it_says);
    RUN(the_walk_names_what_the_header_uses);
    RUN(contributing_names_who_uses_private_names);
    RUN(make_clean_keeps_a_copy);
    RUN(a_copy_works_without_its_solution);
    RUN(grade_tells_a_missing_copy_from_a_wrong_one);
    return test_report("test_lessons");
}
