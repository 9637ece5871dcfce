/* --help, written from the option tables: usage line, what it is for, options by group, examples. */
#include "option_internal.h"

#include <stdio.h>
#include <string.h>

enum { INDENT = 28, WIDTH = 100 };

/* Prints `text` word by word from column `col`, continuing at INDENT. */
static void print_wrapped(const char *text, int col)
{
    while (*text) {
        size_t len = strcspn(text, " ");
        if (col + 1 + (int)len > WIDTH)
            col = printf("\n%*s", INDENT, "") - 1;
        else if (col > INDENT)
            col += printf(" ");
        printf("%.*s", (int)len, text);
        col += (int)len;
        text += len;
        while (*text == ' ') text++;
    }
}

/* Paragraphs with lines of at most WIDTH. As in most text formats a single line break is a space, two begin a paragraph. */
static void print_paragraphs(const char *text)
{
    int col = 0;
    while (*text) {
        size_t gap = strspn(text, " \n");
        bool paragraph = gap >= 2 && strncmp(text, "\n\n", 2) == 0;
        text += gap;
        size_t word = strcspn(text, " \n");
        if (paragraph) printf("\n\n"), col = 0;
        if (col > 0 && col + 1 + (int)word > WIDTH) printf("\n"), col = 0;
        if (word) col += printf("%s%.*s", col > 0 ? " " : "", (int)word, text);
        text += word;
    }
    printf("\n");
}

static const char *value_word(const cw_option *o)
{
    if (o->value) return o->value;
    switch (o->type) {
    case CW_OPT_FLAG: return NULL;
    case CW_OPT_INT:
    case CW_OPT_FLOAT: return "N";
    case CW_OPT_SIZE: return "SIZE";
    case CW_OPT_DURATION: return "TIME";
    case CW_OPT_ENUM: return o->choices;
    case CW_OPT_STRING: break;
    }
    return "TEXT";
}

static void print_row(const cw_option *o)
{
    char left[160], text[600], env[80];
    const char *word = value_word(o);
    int n = o->short_name ? snprintf(left, sizeof left, "  -%c, --%s", o->short_name, o->name)
                          : snprintf(left, sizeof left, "      --%s", o->name);
    if (word && n < (int)sizeof left) snprintf(left + n, sizeof left - (size_t)n, " %s", word);
    int used = snprintf(text, sizeof text, "%s", o->help);
    if (o->def && used < (int)sizeof text)
        used += snprintf(text + used, sizeof text - (size_t)used, " [default: %s]", o->def);
    if (!(o->flags & CW_OPT_NO_ENV) && used < (int)sizeof text)
        snprintf(text + used, sizeof text - (size_t)used, " [%s]", cw_option_env_name(o, env, sizeof env));
    int col = printf("%s", left);
    if (col > INDENT - 2)
        printf("\n%*s", INDENT, "");
    else
        printf("%*s", INDENT - col, "");
    print_wrapped(text, INDENT);
    printf("\n");
}

static void print_table(const cw_option *rows)
{
    for (; rows->name; rows++) {
        if (rows->group) printf("\n%s:\n", rows->group);
        if (!(rows->flags & CW_OPT_HIDDEN)) print_row(rows);
    }
}

static void print_command(const cw_program *p, const cw_command *c)
{
    const char *space = *c->name ? " " : "";
    printf("%s%s%s: %s\n\nusage: %s%s%s %s\n", p->name, space, c->name, c->summary, p->name, space, c->name,
           c->usage);
    if (c->about) {
        printf("\n");
        print_paragraphs(c->about);
    }
    for (size_t t = 0; c->tables[t]; t++) print_table(c->tables[t]);
    print_table(cw_option_builtin);
    printf("\nA name in brackets is the environment variable that sets the same; what is typed wins.\n");
    if (c->examples) printf("\nexamples:\n%s\n", c->examples);
}

void cw_option_print_help(const cw_program *p, const cw_command *c)
{
    const cw_command *unnamed = NULL;
    size_t width = 0;
    if (c) {
        print_command(p, c);
        return;
    }
    for (size_t i = 0; i < p->n_commands; i++) {
        if (!*p->commands[i].name) unnamed = &p->commands[i];
        if (strlen(p->commands[i].name) > width) width = strlen(p->commands[i].name);
    }
    if (unnamed)
        print_command(p, unnamed);
    else
        printf("%s: %s\n\nusage: %s COMMAND [options]\n", p->name, p->summary, p->name);
    if (!unnamed && p->about) {
        printf("\n");
        print_paragraphs(p->about);
    }
    if (p->n_commands > (unnamed ? 1u : 0u)) printf("\ncommands:\n");
    for (size_t i = 0; i < p->n_commands; i++)
        if (*p->commands[i].name)
            printf("  %-*s  %s\n", (int)width, p->commands[i].name, p->commands[i].summary);
    if (p->n_commands > 1) printf("\n'%s COMMAND --help' explains one of them.\n", p->name);
}
