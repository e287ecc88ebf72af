/* What a run gave: a line on standard output, a row of a CSV file, and a file with what was trained. */
#include "tuning.h"
#include "../../common/file.h"

/* A field in quotes, with quotes inside doubled. */
static void put_quoted(FILE *file, const char *text) {
    fputc('"', file);
    for (; *text; text++) {
        if (*text == '"') fputc('"', file);
        fputc(*text, file);
    }
    fputc('"', file);
}

/* A field; in quotes only where it has to be. */
static void put_field(FILE *file, const char *text) {
    if (strpbrk(text, ",\"\n"))
        put_quoted(file, text);
    else
        fputs(text, file);
    fputc(',', file);
}

static int append_row(const tuning *t, const char *method, const tuning_result *r) {
    FILE *file = system_open(t->set.csv, "a");
    if (!file) return whole_file_failed(t->set.csv);
    fseek(file, 0, SEEK_END);
    if (ftell(file) == 0)
        fprintf(
            file,
            "program,method,model,task,seed,dev,test,gold,trained,seconds,cpu_seconds,peak_mb,settings\n");
    fprintf(file, "%s,%s,", t->method.program, method);
    put_field(file, file_name(t->set.model));
    put_field(file, t->set.task);
    fprintf(file, "%d,%.4f,%.4f,", t->set.seed, r->dev, r->test);
    if (r->gold >= 0) fprintf(file, "%.4f", r->gold);
    fprintf(file, ",%lld,%.1f,%.1f,%.1f,", (long long)tuning_count(t), r->seconds, r->cpu_seconds,
            system_peak_mb());
    put_quoted(file, t->line);
    fputc('\n', file);
    int bad = ferror(file);
    return (fclose(file) == 0 && !bad) || whole_file_failed(t->set.csv);
}

/* Of the model, and of what was added to it. */
static int64_t count_all(const tuning *t) {
    int64_t n = t->model ? t->model->n_parameters : 0;
    for (int i = 0; i < t->n_parameters; i++) {
        const ml_tensor *x = t->parameters[i]->tensor;
        int is_own = 1;
        for (int j = 0; t->model && j < t->model->n_tensors; j++)
            if (x == &t->weights[j]) is_own = 0;
        if (is_own) n += (int64_t)(x->rows * x->cols);
    }
    return n;
}

int tuning_report(tuning *t, const char *method, const tuning_result *r) {
    printf("%s %s: dev %.3f, test %.3f", t->method.program, method, r->dev, r->test);
    if (r->gold >= 0) printf(", real test %.3f", r->gold);
    printf("; %lld of %lld numbers trained, %.1f s (%.1f s of processors), %.0f MB; best at step %d of %d\n",
           (long long)tuning_count(t), (long long)count_all(t), r->seconds, r->cpu_seconds, system_peak_mb(),
           r->best_step, r->steps);
    fflush(stdout);
    return !t->set.csv || append_row(t, method, r);
}

/* Files have room for one linear layer over the last state or the mean, and for the model's own weights. */
int tuning_can_save(const tuning *t) {
    const char *pooling = t->set.pooling;
    if (!t->model) return complain("--save: %s has no model, and no file format", t->method.program);
    if (t->set.head_hidden || (strcmp(pooling, "mean") != 0 && strcmp(pooling, "last") != 0))
        return complain("--save: a classifier with --pooling %s%s has no file format", pooling,
                        t->set.head_hidden ? " and --head_hidden" : "");
    for (int i = 0; i < t->n_parameters && !t->method.save; i++)
        if (t->parameters[i]->own.data && strncmp(t->parameters[i]->name, "head.", 5) != 0)
            return complain("--save: %s has parameters (%s) that a model file has no place for",
                            t->method.name, t->parameters[i]->name);
    return 1;
}

/* The classifier as the library saves one. NULL after saying why it cannot be. */
ml_head *tuning_head_object(tuning *t) {
    const tuning_private *p = t->private_part;
    ml_head_create_desc desc = {0};
    ml_head *head = NULL;
    ml_random random = t->random;
    ml_error error;
    desc.n_classes = t->labels.n;
    desc.labels = t->labels.name;
    desc.pooling = strcmp(t->set.pooling, "mean") == 0 ? ML_POOL_MEAN : ML_POOL_LAST;
    desc.random = &random;
    if (!tuning_can_save(t) || !succeeded(ml_head_create(t->model, &desc, &head, &error), &error))
        return NULL;
    memcpy(head->weight.data, p->head->data, p->head->rows * p->head->cols * sizeof(float));
    memcpy(head->bias.data, p->head_bias->data, p->head_bias->cols * sizeof(float));
    return head;
}

int tuning_save(tuning *t, const char *path) {
    ml_head *head = tuning_head_object(t);
    ml_save_desc desc = {format_of(path), ML_TYPE_NONE, NULL, head};
    ml_error error;
    int ok = head && loaded(path, ml_model_save(t->model, path, &desc, &error), &error);
    ml_head_free(head);
    return ok;
}
